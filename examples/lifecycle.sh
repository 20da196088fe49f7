#!/bin/sh
# The lifecycle of a key, from a shell: creates, uses, lists, updates, rotates and revokes a key through Keyward's management socket.
#
#   lifecycle.sh SOCKET API ORGANIZATION
#
# SOCKET is the path in [management] listen, API a URL behind Keyward that accepts any valid key, ORGANIZATION an organization id
# of Scalekit. If secret_file is set, put the secret into MANAGEMENT_SECRET.
set -eu

socket=$1 api=$2 keys=/v1/organizations/$3/keys
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# curl reads secret headers from files, because every user of the machine can see the arguments of a process.
umask 077
[ -z "${MANAGEMENT_SECRET:-}" ] || printf 'Authorization: Bearer %s\n' "$MANAGEMENT_SECRET" >"$work/secret"
[ -e "$work/secret" ] || : >"$work/secret"

# manage METHOD PATH [curl's arguments]: sends a request; sets $status and writes the response body to $work/answer.
manage() {
    method=$1 path=$2
    shift 2
    status=$(curl -sS --unix-socket "$socket" -o "$work/answer" -w '%{http_code}' -H "@$work/secret" \
        -X "$method" "http://localhost$path" -H 'Content-Type: application/json' "$@")
}

# expect STATUS WHAT: prints WHAT if $status is STATUS; otherwise prints the response and exits.
expect() {
    if [ "$status" != "$1" ]; then
        printf '%s: %s instead of %s: %s\n' "$2" "$status" "$1" "$(cat "$work/answer")" >&2
        exit 1
    fi
    printf '%s\n' "$2"
}

# field NAME: prints the first string field of this name in the response. With jq, use `jq -r .NAME` instead.
field() {
    tr ',{' '\n\n' <"$work/answer" | sed -n "s/^ *\"$1\": *\"\\([^\"]*\\)\".*/\\1/p" | head -n 1
}

# call KEY: sends a request with this key to the service; sets $status.
call() {
    printf 'Authorization: Bearer %s\n' "$1" >"$work/key"
    status=$(curl -sS -o "$work/answer" -w '%{http_code}' -H "@$work/key" "$api")
}

# One Idempotency-Key for each key to be created: keep it until the response is there, and send it again with a retry.
wanted=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
new='{"user_id": "usr_shell", "custom_claims": {"team": "shell"}, "description": "made by lifecycle.sh"}'
manage POST "$keys" -H "Idempotency-Key: $wanted" -d "$new"
expect 201 created
key=$(field token) id=$(field token_id)
manage POST "$keys" -H "Idempotency-Key: $wanted" -d "$new"
expect 409 'not created twice'
[ "$(field token_id)" = "$id" ]

call "$key"
expect 200 'good for the service'
manage GET "$keys?user_id=usr_shell"
expect 200 listed
grep -q "\"$id\"" "$work/answer"
manage GET "$keys/$id"
expect 200 shown
manage PATCH "$keys/$id" -d '{"custom_claims": {"team": "terminal"}}'
expect 200 changed
[ "$(field team)" = terminal ]

manage POST "$keys/$id/rotate"
expect 201 rotated
next=$(field token) next_id=$(field token_id)
call "$key"
expect 401 'the old key is refused'
call "$next"
expect 200 'the new key is good'

manage DELETE "$keys/$next_id"
expect 204 revoked
call "$next"
expect 401 'refused on the very next request'
