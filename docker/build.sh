#!/usr/bin/env bash
# Builds both images, wardround-site and wardround-coordinator, with docker, podman or buildah:
#
#     docker/build.sh [OPTION ...]
#
# ENGINE names one of the three (with options of its own, if need be), else the first that works here is taken. BASE
# names another base image, one with Python 3.11. The options go to the engine where packages are installed, for a
# machine that has a mirror: `docker/build.sh --volume /etc/pip.conf:/etc/pip.conf:ro` with buildah or podman.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${ENGINE:-}" ]; then
	for ENGINE in docker podman buildah none; do
		command -v "$ENGINE" >/dev/null && "$ENGINE" info >/dev/null 2>&1 && break
	done
fi
read -ra engine <<<"$ENGINE"
case "${engine[0]##*/}" in
docker) build=("${engine[@]}" build) ;;
podman) build=("${engine[@]}" build --layers) ;;
# Without a container engine's rights, as in most CI: each step runs in a chroot.
buildah) build=("${engine[@]}" bud --layers --isolation "${BUILDAH_ISOLATION:-chroot}") ;;
*)
	echo "build.sh: none of docker, podman and buildah works here. Install one, or name it: ENGINE=/path/to/docker" >&2
	exit 2
	;;
esac
[ -z "${BASE:-}" ] || build+=(--build-arg "BASE=$BASE")
build+=(--file docker/Dockerfile)
# The options go to the stages that reach a package index, and not to the images. What they mount should have its place
# in the base image: buildah leaves an empty one behind where there was none.
"${build[@]}" "$@" --target bill --tag wardround-bill .
for image in site coordinator; do
	"${build[@]}" --target "$image" --tag "wardround-$image" .
done
