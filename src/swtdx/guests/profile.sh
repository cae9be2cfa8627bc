# Read by the login shell that init.sh starts in shell mode.
export PS1='\[\033[1m\]td\[\033[0m\]:\w# '
if grep -q tdx_guest /proc/cpuinfo; then
    printf '\nYou are root in a trust domain with Linux %s.\n' "$(uname -r)"
    printf 'The hypervisor cannot read what happens here.  Ctrl-A X leaves, exit switches off.\n\n'
else
    printf '\nLinux %s says that this is not a trust domain.\n\n' "$(uname -r)"
fi
