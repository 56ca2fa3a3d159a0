#!/bin/sh
# Makes the certificates that the TLS tests use. They are committed, so that the tests need no openssl; the keys guard
# nothing. Valid from 2020 to 2120, except the two whose dates are the point.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }
authority() { # file, name
    key "$work/$1.key"
    openssl req -new -key "$work/$1.key" -subj "/CN=$2" -out "$work/$1.csr"
    sign "$1" "$1" "$1" authority 20200101000000Z 21200101000000Z
}
sign() { # request, authority, result, extensions, from, to
    : > "$work/index"
    cat > "$work/ca.conf" <<CONF
[ca]
default_ca = own
[own]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
[any]
commonName = supplied
[authority]
basicConstraints = critical,CA:true
subjectKeyIdentifier = hash
keyUsage = critical,keyCertSign,cRLSign
[broker]
basicConstraints = CA:false
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost,IP:127.0.0.1
extendedKeyUsage = serverAuth
[client]
basicConstraints = CA:false
authorityKeyIdentifier = keyid
extendedKeyUsage = clientAuth
CONF
    self=""
    [ "$1" = "$2" ] && self="-selfsign"
    [ "$1" = "$2" ] || set -- "$@" -cert "$2.pem"
    result=$3 extensions=$4 from=$5 to=$6 request=$1 authority=$2
    shift 6
    openssl ca -batch -notext -config "$work/ca.conf" $self -keyfile "$work/$authority.key" "$@" \
        -in "$work/$request.csr" -out "$result.pem" -extensions "$extensions" -startdate "$from" -enddate "$to"
}
authority authority "Test authority"
authority stranger "Another authority"
for name in broker client; do
    key "$name.key"
    openssl req -new -key "$name.key" -subj "/CN=$name" -out "$work/$name.csr"
done
sign broker authority broker broker 20200101000000Z 21200101000000Z
sign broker authority broker-future broker 21000101000000Z 21200101000000Z
sign broker authority broker-expired broker 20200101000000Z 20210101000000Z
sign client authority client client 20200101000000Z 21200101000000Z
