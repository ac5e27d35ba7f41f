#!/bin/sh
# The first process of a lab host: gives it a root of its own, then does nothing but reap.
# Runs in new network, mount, PID, UTS and IPC namespaces; all mounts end with them.
#
#   init.sh FOLDER HOSTNAME
#
# FOLDER holds disk.img (a formatted disk), hidden (paths of this machine that the host must
# not see, one per line, without a leading slash), folders (MODE PATH to make), links (PATH
# TARGET) and etc/ (put over the host's /etc). Prints "ready" when the host's root is in place.
set -eu
folder=$1 name=$2
disk=$folder/disk root=$folder/root
mount --make-rprivate /

# The loop device frees itself with its last mount, so a killed host leaves none behind.
mount -t ext4 -o loop,discard,noinit_itable "$folder/disk.img" "$disk"
mkdir "$disk/upper" "$disk/work" "$disk/docker"
# A character device 0:0 in the upper layer hides what the lower one has (overlayfs' whiteout).
while read -r path; do
    parent=$disk/upper/${path%/*}
    if [ "$path" = "${path%/*}" ]; then parent=$disk/upper; fi
    mkdir -p "$parent"
    mknod "$disk/upper/$path" c 0 0
done <"$folder/hidden"
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$root"

while read -r mode path; do
    mkdir -p "$root/$path"
    chmod "$mode" "$root/$path"
done <"$folder/folders"
while read -r path target; do
    ln -s "$target" "$root/$path"
done <"$folder/links"
cp -R --preserve=mode "$folder/etc/." "$root/etc/"

mount --bind "$disk/docker" "$root/var/lib/docker"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mkdir -m 1777 "$root/run/lock"
mkdir -m 0755 "$root/run/sshd"

# Own device nodes: this machine's disks are no business of a pretend server.
mount -t tmpfs -o mode=0755,size=1m tmpfs "$root/dev"
while read -r node major minor; do
    mknod -m 0666 "$root/dev/$node" c "$major" "$minor"
done <<NODES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
NODES
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=0755 tmpfs "$root/sys/fs/cgroup"
    while IFS=: read -r id controllers path; do
        case $controllers in
            '' | name=*) continue ;;
        esac
        mkdir "$root/sys/fs/cgroup/$controllers"
        mount -t cgroup -o "$controllers" cgroup "$root/sys/fs/cgroup/$controllers"
    done </proc/self/cgroup
fi

hostname "$name"
cd "$root"
mkdir .machine
pivot_root . .machine
cd /
umount -l /.machine
rmdir /.machine
echo ready
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin tini -- tail -f /dev/null \
    </dev/null >/dev/null 2>&1
