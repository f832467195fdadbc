#!/usr/bin/env bash
# Writes the three ROS packages side by side into DIR: p2d_node, p2d_msgs, p2d_sim. A release with bloom takes them so:
# like colcon, it does not look for packages inside a package.
# Usage: tools/export_packages.sh DIR. It takes the files of the working tree that git does not ignore.
set -euo pipefail
fail() { echo "p2d_node: $*" >&2; exit 2; }

[ $# -eq 1 ] || fail "got $# arguments, needed: tools/export_packages.sh DIR"
mkdir -p "$1" || fail "got the folder $1, which cannot be created; name another one"
target=$(cd "$1" && pwd)
[ -z "$(ls -A "$target")" ] || fail "got the folder $target, which is not empty; name a new one"
cd "$(dirname "$0")/.."
git rev-parse --is-inside-work-tree > /dev/null || fail "$PWD is no git clone; clone the repository"

# copy_files FROM NAME [PATHSPEC...]: the files of the folder FROM become the package NAME.
copy_files() {
  local from=$1 name=$2
  shift 2
  mkdir "$target/$name"
  (
    cd "$from"
    git ls-files -z --cached --others --exclude-standard -- . "$@" |
      while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
      tar --create --null --files-from - | tar --extract --directory "$target/$name"
  )
}

# bloom wants a changelog in reStructuredText with a section per dated release. The text is in CHANGELOG.md alone.
write_changelog() {
  local title="Changelog for package $1" heading url
  url=$(sed -n 's/.*<url type="repository">\(.*\)<.*/\1/p' package.xml)
  printf '%s\n%s\n%s\n' "${title//?/^}" "$title" "${title//?/^}"
  sed -nE 's/^## Unreleased$/Forthcoming/p; s/^## ([0-9.]+ \([0-9-]+\))$/\1/p' CHANGELOG.md | while read -r heading; do
    printf '\n%s\n%s\n* See CHANGELOG.md in %s\n' "$heading" "${heading//?/-}" "$url"
  done
}

copy_files . p2d_node ':!ros2_ws'
for name in p2d_msgs p2d_sim; do
  copy_files "ros2_ws/src/$name" "$name"
  cp LICENSE "$target/$name"
done
for name in p2d_node p2d_msgs p2d_sim; do
  write_changelog "$name" > "$target/$name/CHANGELOG.rst"
done
