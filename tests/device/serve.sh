#!/usr/bin/env bash
# Serve the machine that build.sh made over SSH on 127.0.0.1, until SIGTERM: serve.sh FOLDER PORT PUBLIC_KEY_FILE
# QEMU runs its aarch64 programs inside a user and mount namespace of their own: binfmt_misc belongs to a user namespace,
# so this machine's stays as it is. /small is a disk of 3 MB.
set -euo pipefail
folder=$(realpath "${1:?folder}")
port=${2:?port}
key=$(realpath "${3:?public key}")
install -m 600 "$key" "$folder/system/home/pi/.ssh/authorized_keys"
gate=$(mktemp -u)
mkfifo "$gate"
unshare --user --mount -- bash -c '
    read -r go <"$2"
    aarch64="\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    mask="\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
    mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    printf "%s" ":qemu-aarch64:M::$aarch64:$mask:$1/tools/usr/bin/qemu-aarch64-static:OCF" \
        >/proc/sys/fs/binfmt_misc/register
    mount --rbind /proc "$1/system/proc"
    mount --rbind /dev "$1/system/dev"
    mount --bind "$1/cpuinfo" "$1/system/proc/cpuinfo"
    mkdir -p "$1/system/small"
    mount -t tmpfs -o size=3m tmpfs "$1/system/small"
    exec chroot "$1/system" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/home/pi LANG=C.UTF-8 TERM=dumb QEMU_CPU=cortex-a53 \
        /usr/sbin/sshd -D -e -p "$3" -o ListenAddress=127.0.0.1 -o UsePAM=no -o PasswordAuthentication=no \
        -o StrictModes=no -o "SetEnv=QEMU_CPU=cortex-a53"
' serve "$folder" "$gate" "$port" &
child=$!
trap 'kill "$child" 2>/dev/null' TERM INT EXIT
sleep 0.3
echo "0 0 65536" >"/proc/$child/uid_map"
echo "0 0 65536" >"/proc/$child/gid_map"
echo go >"$gate"
rm -f "$gate"
wait "$child"
