#!/usr/bin/env bash
# Runs a command beside a Ceph object gateway: one monitor, one OSD in memory, one radosgw, all from
# another Debian in the folder ROOT, and none of them left afterwards. Needs root.
#
#   tests/brokers/radosgw.sh ROOT COMMAND...      COMMAND finds the gateway's URL in TEST_S3_URL
set -euo pipefail
if [[ ${1:-} != --inside ]]; then
    exec unshare --mount --pid --fork --kill-child --mount-proc "$0" --inside "$@"
fi
root=$2
shift 2
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
mkdir -p "$root$here" "$here"/{mon,osd}
mount --bind "$here" "$root$here"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
gateway=$(port)
monitor=$(port)
fsid=$(cat /proc/sys/kernel/random/uuid)
cat >"$here/ceph.conf" <<END
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$monitor/0]
public addr = 127.0.0.1
ms bind msgr1 = false
keyring = $here/keyring
osd objectstore = memstore
memstore device bytes = 4294967296
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data = $here/mon
mon data avail crit = 1
osd data = $here/osd
run dir = $here
log file = $here/\$name.log
rgw frontends = beast endpoint=127.0.0.1:$gateway
END
inside() { chroot "$root" "$@"; }
conf=(-c "$here/ceph.conf")
inside ceph-authtool --create-keyring "$here/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
for name in client.admin osd.0 client.rgw.a; do
    inside ceph-authtool "$here/keyring" --gen-key -n $name --cap mon 'allow *' --cap osd 'allow *'
done
inside monmaptool --create --addv a "[v2:127.0.0.1:$monitor]" --fsid "$fsid" "$here/monmap" >/dev/null
inside ceph-mon "${conf[@]}" -i a --mkfs --monmap "$here/monmap" --keyring "$here/keyring"
inside ceph-mon "${conf[@]}" -i a -f &>"$here/mon.out" &
inside ceph "${conf[@]}" --connect-timeout 60 osd new "$fsid" >/dev/null
inside ceph-osd "${conf[@]}" -i 0 --mkfs --osd-uuid "$fsid"
inside ceph-osd "${conf[@]}" -i 0 -f &>"$here/osd.out" &
inside radosgw "${conf[@]}" -n client.rgw.a -f &>"$here/gateway.out" &
for _ in $(seq 120); do
    (exec 3<>"/dev/tcp/127.0.0.1/$gateway") 2>/dev/null && break
    sleep 0.5
done
(exec 3<>"/dev/tcp/127.0.0.1/$gateway") || { tail -n 5 "$here"/*.out "$here"/*.log >&2; exit 1; }
# The keys of tests/services/s3.py.
inside radosgw-admin "${conf[@]}" -n client.rgw.a user create --uid tests --display-name tests \
    --access-key AKIDTESTS0000000EXAMPLE --secret-key s3cr3t/of+the+tests/EXAMPLEKEY0000000000 >/dev/null
TEST_S3_URL=http://127.0.0.1:$gateway "$@"
