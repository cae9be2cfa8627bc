# Read by the login shell that init.sh starts in shell mode.
export PS1='\[\033[1m\]td\[\033[0m\]:\w# '
printf '\n'
printf 'You are root in a trust domain: %s, kernel %s.\n' "$(grep -o -m1 tdx_guest /proc/cpuinfo)" "$(uname -r)"
printf 'The hypervisor cannot read what happens here.  Ctrl-A X leaves, exit switches off.\n\n'
