#!/usr/bin/env bash
# A coordinator and three hospitals on this machine, each by the commands that its own operator types: registered keys,
# TLS, code that a reviewer signed. Runs studies/consortium.toml, shuts down, plays the same study in one process and
# compares the two models. `make consortium`, or: docs/examples/consortium.sh [FOLDER [STUDY]]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-$root/runs/consortium-$(date +%Y%m%d-%H%M%S)}
study=$(realpath "${2:-$root/studies/consortium.toml}")
export PATH="$root/.venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
port=${PORT:-8123}
sites=(synthetic-north synthetic-east synthetic-south)
mkdir -p "$folder/logs" "$folder/sites"
cd "$folder"
started=()
# Two signals: the first asks, and whoever is asked ends its own children.
trap '((${#started[@]} == 0)) || { kill "${started[@]}" 2>/dev/null || true; wait; }' EXIT

wait_until() { # TEXT, then a command whose output must hold it
	local text=$1 n
	shift
	for n in $(seq 240); do
		if "$@" 2>/dev/null | grep -q "$text"; then return; fi
		sleep 1
	done
	echo "waited in vain for: $text" >&2
	exit 1
}

echo "== The coordinator: certificates; a reviewer signs the code that the sites will run"
wardround certs make coordinator --host localhost
wardround bundle keygen reviewer
wardround bundle build code.fab
wardround bundle sign code.fab --key reviewer/reviewer.key --name reviewer
wardround bundle verify code.fab --reviewer reviewer=reviewer/reviewer.pub
wardround bundle publish coordinator code.fab

echo "== Each hospital: its file, its key, its approval"
for site in "${sites[@]}"; do
	cat >"sites/$site.toml" <<-TOML
		extends = "$root/site_configs/synthetic/$site.toml"
		[client.policy.reviewers]
		reviewer = "$(cat reviewer/reviewer.pub)"
	TOML
	wardround-site keygen "$site"
	wardround sites add coordinator "$site" "$site/site.pub"
	wardround-site approve "$study" --site "sites/$site.toml" --yes | tail -n 1
done

echo "== Everybody starts; a hospital only calls out"
wardround serve coordinator --port "$port" >logs/serve.log 2>&1 &
started+=($!)
wait_until "Ready." cat logs/serve.log
for site in "${sites[@]}"; do
	wardround-site join "sites/$site.toml" --coordinator "localhost:$port" --ca coordinator/certs/ca.pem \
		--key "$site/site.key" --state "$site/state" >"logs/$site.log" 2>&1 &
	started+=($!)
done
for site in "${sites[@]}"; do
	wait_until "$site.*online" wardround sites list coordinator
done
wardround sites list coordinator

echo "== The study"
wardround run "$study" --coordinator coordinator --runs runs
for site in "${sites[@]}"; do
	wardround-site audit "sites/$site.toml" --state "$site/state" >"logs/audit-$site.txt"
done

echo "== Everybody stops; the same study in one process"
kill "${started[@]}"
wait
started=()
wardround simulate "$study" --arms federated --runs simulated

last() { # the model's SHA-256 after the last round of the run in a folder
	ls "$1"/*/seed-1/federated/round-[0-9]*.json | sort | tail -n 1 | xargs grep -o '"model_sha256": "[0-9a-f]*"'
}
echo "hospitals:   $(last runs)"
echo "one process: $(last simulated)"
[ "$(last runs)" = "$(last simulated)" ] || { echo "The two models differ." >&2; exit 1; }
echo "The two models are the same, bit for bit. All files: $folder"
