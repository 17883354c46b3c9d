# What the recipes for slime and verl share. Sourced.

stop() {  # sentence
   echo "${0##*/}: $1" >&2
   exit 2
}

require() {  # name, meaning: the variable is set, and what it names exists
   [[ -n "${!1:-}" ]] || stop "$1 is not set; set it to $2."
   [[ "${DRY_RUN}" == 1 || -e "${!1}" ]] || stop "$1 is ${!1}, which does not exist here; set it to $2."
}

run() {  # command: runs it, or prints it
   if [[ "${DRY_RUN}" == 1 ]]; then
      printf '%q ' "$@"
      echo
   else
      "$@"
   fi
}
