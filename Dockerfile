# The operator and the init container are one static binary in an empty image.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# With libc in the binary: there is no other file in the image.
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
 && cargo build --release --locked --bins --examples --target "$target" \
 && mkdir /out && cp "target/$target/release/vault-token-operator" "target/$target/release/examples/vault-example" /out/

# docker build --target example -t vault-example:0.1.0 .
FROM scratch AS example
COPY --from=build /out/vault-example /vault-example
USER 65532:65532
ENTRYPOINT ["/vault-example"]

# docker build -t vault-token-operator:0.1.0 .
FROM scratch
COPY --from=build /out/vault-token-operator /vault-token-operator
USER 65532:65532
ENTRYPOINT ["/vault-token-operator"]
