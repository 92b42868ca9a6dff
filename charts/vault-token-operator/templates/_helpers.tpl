{{/* A file of config/, in the release's namespace. */}}
{{- define "vault-token-operator.file" -}}
{{- $here := printf "namespace: %q" .root.Release.Namespace }}
{{- .root.Files.Get (printf "config/%s" .path) | replace "namespace: vault-token-operator" $here }}
{{- end }}

{{/* The operator's settings: those of config/operator.env, with what the values say in their place and beside them. */}}
{{- define "vault-token-operator.settings" -}}
{{- $settings := dict }}
{{- range .Files.Lines "config/operator.env" }}
{{- if not (or (empty .) (hasPrefix "#" .)) }}
{{- $setting := splitn "=" 2 . }}
{{- $_ := set $settings $setting._0 $setting._1 }}
{{- end }}
{{- end }}
{{- $own := dict "VTO_CLUSTER" .Values.cluster "VAULT_ADDR" .Values.vault.address }}
{{- merge $own .Values.settings $settings | toYaml }}
{{- end }}

{{/* The operator's image, which is the init container's, too. */}}
{{- define "vault-token-operator.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
