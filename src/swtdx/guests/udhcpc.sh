#!/bin/sh
# What udhcpc runs with the address that it got ($1 says what has happened; see busybox's udhcpc).
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ifconfig "$interface" "$ip" ${subnet:+netmask "$subnet"} ${mtu:+mtu "$mtu"}
for gateway in $router; do route add default gw "$gateway" dev "$interface"; done
: >/etc/resolv.conf
for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
