# What a trust domain is, seen from inside, in a few commands.  Runs under init.sh's demo mode.

show() {
    printf '\n\033[1m# %s\033[0m\n$ %s\n' "$1" "$2"
    sh -c "$2"
}

show "An unmodified kernel found out by itself that it runs in a trust domain" \
    "uname -r; dmesg | grep -E 'tdx: |Memory Encryption' | sed 's/^\\[[^]]*\\] //'"
show "so every program can see it" \
    "grep -o -m1 tdx_guest /proc/cpuinfo"
show "Devices see only what the kernel shares: these bounce buffers" \
    "dmesg | grep -iE 'software IO TLB: (mapped|area|Memory enc)' | sed 's/^\\[[^]]*\\] //'"
show "The TDX Module vouches for what was loaded (TDREPORT: MRTD, then RTMR0 to RTMR3)" \
    "tdreport </dev/null >/tmp/report && for at in 528 720 768 816 864; do dd if=/tmp/report bs=1 skip=\$at count=48 2>/dev/null | xxd -p -c 48; done"
show "and what happened since is in the event log" \
    "ls -l /sys/firmware/acpi/tables/data/CCEL"
printf '\n'
