# Makes of the namespaces that it runs in a machine for one node, then becomes what it is given.
set -e
# What containerd and the kubelet keep at places that cannot be chosen.
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir /run/lib /run/lib-work
mount -t overlay overlay -o lowerdir=/var/lib,upperdir=/run/lib,workdir=/run/lib-work /var/lib
# What the kubelet would set for the whole machine: it finds it set.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file="/run/sysctl-$(echo "${setting%=*}" | tr / -)"
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done
hostname "$TESTBED_WORLD_NODE"
ip link set lo up
# The node's address. There is no way out of here.
ip link add node type veth peer name nowhere
ip link set nowhere up
ip address add "$TESTBED_WORLD_ADDRESS/32" dev node
ip link set node up
ip route add default dev node
echo 1 >/proc/sys/net/ipv4/ip_forward
exec "$@"
