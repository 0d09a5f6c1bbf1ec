#!/usr/bin/env bash
# The V-GPS question: one critic a suite, five policies that it never saw, twelve tasks. Recording, training and evaluation, from nothing;
# killed at any point, the same command goes on. Some hours on two cores.
#
#   benchmarks/five_policies.sh     everything is in runs/five: the table in results/, the curve over K in candidates/, the parts in ablation/
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=runs/five
# On one thread a process, what two machines of a kind make of this is the same to the bit (seen with robosuite).
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

record() { # suite store demonstrations-a-task seed qualities...
  local suite=$1 store=$out/$1/$2 count=$3 seed=$4 cameras=()
  shift 4
  if [ "$suite" = tabletop ]; then cameras=(--cameras primary wrist); fi
  if [ ! -e "$store" ]; then
    robot-rl collect --out "$store" --env "$suite" --demonstrations "$count" --seed "$seed" --qualities "$@" "${cameras[@]}"
  fi
}

# Each policy has demonstrators of its own: other seeds, and another mixture of clean (1), dithering (0.5) and failing (0) ones.
for suite in tabletop robosuite; do
  record $suite all 400 0 1 0.5 1 0
  record $suite careful 150 1 1 1 0.5
  record $suite mixed 150 2 1 0.5 1 0
  record $suite dithering 150 3 0.5 1 0.5
  record $suite sloppy 150 4 1 0 0.5
  record $suite poor 150 5 1 0.5 0 0
done

clone() { # suite family store options...
  local suite=$1 family=$2 store=$3
  shift 3
  robot-rl train policy --policy "$family" --data "$out/$suite/$store" --out "$out/$suite/$family" "$@"
}

train() { # suite options-of-what-they-look-at...
  local suite=$1
  shift
  robot-rl train critic --data "$out/$suite/all" --out "$out/$suite/critic" --steps 6000 "$@"
  clone "$suite" gaussian poor --steps 6000 "$@"
  clone "$suite" diffusion mixed --steps 6000 "$@"
  clone "$suite" flow dithering --steps 6000 "$@"
  # A step of these two costs more.
  clone "$suite" autoregressive sloppy --steps 4000 --batch-size 64 --layers 2 --prefix 4 "$@"
  clone "$suite" octo careful --steps 4000 --batch-size 64 --language sentence "$@"
}

# On the tabletop they look through two cameras, and share networks that learned to see from the critic's data.
images=(--inputs image_primary image_wrist proprio)
{
  robot-rl train vision --data $out/tabletop/all --out $out/tabletop/vision --steps 6000 --batch-size 64 "${images[@]}"
  train tabletop "${images[@]}" --vision $out/tabletop/vision
} & # a core for each of the two
seeing=$!
{
  train robosuite --inputs state proprio
}
wait $seeing

table=(steered random)
k_curve=("steered, K="{2,5,10,20,100,200} "V-GPS "{10,50,200}", 0")
ablation=(mode "steered, "{"not smoothed","value alone","temperature 1","temperature 16","smoothing 0.15","smoothing 0.6","mean of members","10 ascent steps"})
for k in 10 50; do table+=("V-GPS $k, "{0,0.1,1}); done

run() { # place, options...
  local place=$1
  shift
  robot-rl benchmark "$here/five_policies.json" --out "$out/$place" "$@"
}
run results --methods "${table[@]}" PA-RL RoboMonkey
run candidates --methods steered "${k_curve[@]}" --episodes 25 --seed 5000000 --videos 0
run ablation --methods steered "${ablation[@]}" --episodes 25 --seed 6000000 --videos 0
