#!/bin/sh
# The whole job on demo data: look at the data, fine-tune, judge, predict. Run by `make quickstart`.
#     sh examples/quickstart.sh [FOLDER FOR RUNS]
set -eu
runs=${1:-runs}
cd "$(dirname "$0")/.."

# Nothing is ever overwritten, so a second quickstart gets its own folder.
run="$runs/quickstart"
number=1
while [ -e "$run" ]; do
    number=$((number + 1))
    run="$runs/quickstart-$number"
done

step() {
    printf '\n== %s\n' "$1"
    shift
    printf '$ %s\n' "$*"
    "$@"
}

step "1. Look at the data" chainrule check sentiment/tweets --task text-classification
step "2. Fine-tune" chainrule train sentiment/tweets --model minilm --task text-classification --out "$run" --epochs 2
step "3. Judge it on sentences it has not seen" chainrule evaluate "$run" sentiment/tweets --split test
step "4. Label new sentences" chainrule predict "$run" examples/new.csv --out "$run/labelled.csv"

cat <<END

== Where everything is
the report, for a browser        $run/report.html
the fine-tuned model             $run/artifact/
the labelled sentences           $run/labelled.csv
the recipe to run it again       $run/recipe.yaml
END
