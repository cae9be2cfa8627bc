# What a trust domain is, seen from inside, in a few commands.  Runs under init.sh's demo mode.

show() {
    printf '\n\033[1m# %s\033[0m\n' "$1"
    shift
    for command; do
        printf '$ %s\n' "$command"
        sh -c "$command"
    done
}

show "An unmodified kernel found out by itself where it runs" \
    "uname -r" \
    "dmesg | grep -iE 'tdx|memory encryption'" \
    "grep -c tdx_guest /proc/cpuinfo"
show "Devices see only what the kernel shares with them" \
    "dmesg | grep 'software IO TLB'"
show "The TDX Module vouches for what was loaded: here MRTD and, of the kernel, RTMR1" \
    "tdreport </dev/null >/tmp/report" \
    "tail -c +529 /tmp/report | head -c 48 | xxd -p -c 48" \
    "tail -c +769 /tmp/report | head -c 48 | xxd -p -c 48"
show "and the event log says what that was" \
    "strings -n 6 /sys/firmware/acpi/tables/data/CCEL"
printf '\n'
