#!/bin/sh
# rtmr-extend N DIGEST: extend RTMR N (2 or 3) by a SHA-384, given as 96 hex digits.
#
# The kernel must offer it: Linux 6.16 and later, in /sys/devices/virtual/misc/tdx_guest/measurements.
rtmr=$1
digest=$2
case $rtmr:${#digest}:$digest in
*:*:*[!0-9a-fA-F]*) ;;
[23]:96:*) valid=yes ;;
esac
if [ -z "$valid" ]; then
    echo "usage: rtmr-extend 2|3 DIGEST    (a SHA-384 in 96 hex digits)" >&2
    exit 2
fi
register=/sys/devices/virtual/misc/tdx_guest/measurements/rtmr$rtmr:sha384
if [ ! -w "$register" ]; then
    echo "rtmr-extend: this kernel ($(uname -r)) cannot extend an RTMR for a program; Linux 6.16 and later can" >&2
    exit 1
fi
echo "$digest" | xxd -r -p >"$register"
