# Reads what a testbed process registers; when that process is gone, however it ended, ends what it left.
trap '' INT TERM HUP
# It needs rm, find, rmdir and sleep, whatever PATH the testbed was given.
PATH="$PATH:/usr/bin:/bin"
groups=' '
while IFS= read -r line; do
  case $line in
  'pid '*) groups="$groups${line#pid } " ;;
  'done '*)
    id=" ${line#done } "
    case $groups in *"$id"*) groups="${groups%%"$id"*} ${groups#*"$id"}" ;; esac
    ;;
  'dir '*) set -- "$@" "${line#dir }" ;;
  esac
done
for group in $groups; do
  kill -s KILL -- "-$group"
done
gone() {
  case $1 in
  # The files of a cgroup go with it, and cannot be removed.
  /sys/fs/cgroup/*) [ ! -d "$1" ] || { find "$1" -depth -type d -exec rmdir {} +; [ ! -d "$1" ]; } ;;
  *) rm -rf -- "$1" ;;
  esac
}
# A process that is being killed may still write a file; so a removal is tried again for a while.
for folder in "$@"; do
  tries=0
  until gone "$folder" || [ "$tries" -ge 50 ]; do
    tries=$((tries + 1))
    sleep 0.1
  done
done
