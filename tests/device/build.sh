#!/usr/bin/env bash
# An aarch64 Debian 12 with python3, numpy, onnxruntime and sshd in FOLDER, which serve.sh serves:
#     tests/device/build.sh FOLDER [version of onnxruntime] [version of numpy]
# It needs root, apt-get, dpkg, perl, pip, and the archives of Debian and PyPI. It installs nothing on this machine. It
# takes about a minute and 0.8 GB. FOLDER/.done is there once it is complete.
set -euo pipefail
folder=$(realpath -m "${1:?folder}")
ort=${2:-1.31.1}
numpy=${3:-2.4.6}
python=${PYTHON:-python3}
rm -rf "$folder"
mkdir -p "$folder"/{debs,tools,wheels,tmp}
chmod 755 "$folder"
chmod 1777 "$folder/tmp"

# QEMU and mmdebstrap are unpacked, not installed.
(
    cd "$folder/debs"
    apt-get download -q qemu-user-static mmdebstrap >/dev/null
    for deb in *.deb; do dpkg -x "$deb" ../tools; done
)
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format "\$(REPO_URI)" | grep -v security | head -1)}
TMPDIR=$folder/tmp perl "$folder/tools/usr/bin/mmdebstrap" --quiet --mode=root --architectures=arm64 --variant=extract \
    --skip=check/qemu --aptopt='APT::Sandbox::User "root"' \
    --include=python3-minimal,python3,openssh-server,openssh-sftp-server,libstdc++6,dash,coreutils,base-passwd \
    --include=base-files,bash,grep,sed,procps \
    bookworm "$folder/system" "$mirror"
system=$folder/system

platform=(--only-binary=:all: --python-version 3.11 --implementation cp)
for tag in manylinux_2_28 manylinux_2_27 manylinux2014; do platform+=(--platform "${tag}_aarch64"); done
"$python" -m pip download -q --no-deps "${platform[@]}" -d "$folder/wheels" "onnxruntime==$ort" "numpy==$numpy"
"$python" -m pip install -q --no-deps --no-index --no-compile --target "$system/usr/lib/python3/dist-packages" \
    "${platform[@]}" "$folder"/wheels/*.whl

# What maintainer scripts would have done: they cannot run here.
cat >"$system/etc/passwd" <<'END'
root:x:0:0:root:/home/pi:/bin/bash
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
END
printf 'root:x:0:\nnogroup:x:65534:\n' >"$system/etc/group"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$system/etc/nsswitch.conf"
ln -sf python3.11 "$system/usr/bin/python3"
[ -e "$system/bin/sh" ] || ln -sf dash "$system/usr/bin/sh"
mkdir -p "$system/run/sshd" "$system/home/pi/.ssh" "$system/etc/ssh" "$system/small" "$system/usr/local/bin"
chmod 700 "$system/home/pi/.ssh"
cp "$system/usr/share/openssh/sshd_config" "$system/etc/ssh/sshd_config"
for kind in rsa ed25519; do
    rm -f "$system/etc/ssh/ssh_host_${kind}_key"*
    ssh-keygen -q -t "$kind" -N '' -f "$system/etc/ssh/ssh_host_${kind}_key"
done
printf '#!/bin/sh\nexec python3 -S "$@"\n' >"$system/usr/local/bin/python-without-packages"
chmod 755 "$system/usr/local/bin/python-without-packages"

# onnxruntime ends on the processor files of an x86 machine, so it is shown those of a Raspberry Pi.
mkdir -p "$system/sys/devices/system/cpu"/cpu{0,1,2,3}
for name in online possible present; do echo 0-3 >"$system/sys/devices/system/cpu/$name"; done
for cpu in 0 1 2 3; do
    cat <<END
processor	: $cpu
BogoMIPS	: 38.40
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd03
CPU revision	: 4

END
done >"$folder/cpuinfo"
printf 'Hardware\t: BCM2835\nModel\t\t: Raspberry Pi 3 Model B Plus (emulated)\n' >>"$folder/cpuinfo"
touch "$folder/.done"
