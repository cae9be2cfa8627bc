#!/swtdx/busybox sh
# The first process of a guest with an initrd of the user's own and a command to run (rdinit=/swtdx/init):
# starts the command beside that initrd's init, which it then becomes.  See guests/initramfs.py.
#
# Nothing is mounted where that init will mount it: some take a mount that fails for a kernel without devtmpfs.

bb=/swtdx/busybox
$bb mkdir -p /swtdx/proc /swtdx/sys /swtdx/dev /swtdx/bin
$bb mount -t proc proc /swtdx/proc
$bb mount -t sysfs sysfs /swtdx/sys
$bb mount -t devtmpfs devtmpfs /swtdx/dev
$bb --install -s /swtdx/bin

# What a command may count on, when the user's init has had its time.
mounted() {
    tries=0
    while [ ! -e "$1" ] && [ $tries -lt 300 ]; do
        tries=$((tries + 1))
        usleep 10000
    done
    [ -e "$1" ] || { mkdir -p "$2" && mount -t "$3" "$3" "$2"; }
}

before=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
(
    export PATH=/swtdx/bin HOME=/root
    while read -r module; do
        insmod "/swtdx/modules/$module.ko" 2>/dev/null
    done </swtdx/modules/order
    base=/swtdx
    . /swtdx/exec.sh
    mounted /proc/self /proc proc
    mounted /dev/zero /dev devtmpfs
    mounted /sys/kernel /sys sysfs
    cd /root 2>/dev/null || cd /
    shell=sh
    [ -x /bin/sh ] && shell=/bin/sh
    if [ -r /swtdx/serve.sh ]; then
        . /swtdx/serve.sh
        serve "$before:/swtdx/bin" $shell
    else
        run_command "$before:/swtdx/bin" $shell
    fi
    poweroff -f
) &

init=/init
[ -r /swtdx/rdinit ] && read -r init </swtdx/rdinit
unset bb tries
[ -x "$init" ] && exec "$init" "$@"
# There is nothing to become: the command runs all the same.
while :; do
    wait
    /swtdx/bin/sleep 3600
done
