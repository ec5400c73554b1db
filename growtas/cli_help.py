"""What ``growtas COMMAND --help`` says below the options: what a command does, and examples."""

from __future__ import annotations

FIRST_STEPS = """\
first steps:
  growtas run mnist-5k                a whole run on real images, in minutes
  growtas run folder data.root=DIR    the same on your own: DIR/CLASS/*.png
  growtas COMMAND --help              what a command reads and writes, with examples
  growtas run RECIPE --print-recipe   everything that can be set, with its value

a RECIPE is a YAML file, or the name of one that comes with growtas; a RUN is the folder that a run
of it leaves, such as runs/digits.

exit codes: 0 done; 1 the run failed; 2 something given cannot be used, one line says what;
130 or 143 interrupted by Ctrl-C or a request to end. --debug shows where an error comes from.
"""

_OVERRIDES = """\
any field of the recipe can be changed as section.field=value; [0] is the first item of a list:
  train.epochs=100 optim.lr=1e-3 data.root=/path/to/images output.dir=runs/mine
  search.limits='[{max_params: 6M}, {name: small, max_macs: 1.3G}]'
  'search.limits[0].max_params=5M'
`growtas run RECIPE --print-recipe` shows all fields and their values.
"""

_SUBNETS = """\
SUBNET is one of
  the name of a limit  its winner in search.json
  best                 the winner with the best search result
  smallest, largest    the ends of the search space
  FILE, FILE:NAME      in a .json or .yaml file: embed_dim, num_heads and mlp_ratio; AutoFormer's
                       RETRAIN section; one of PreNAS's candidates (tiny.json:6.0); the best of
                       AutoFormer's evolution (checkpoint-20.pth.tar:1)
  JSON                 '{"embed_dim": 32, "num_heads": [2, 2, 3, 2], "mlp_ratio": [2, 3, 3, 2]}'
"""

_CHANGES = """\
RUN's own recipe says which images and settings are used; what the supernet was trained with cannot
be changed here.
"""

EPILOGS = {
    "run": f"""\
the folder of the run (output.dir; runs/RECIPE if the recipe says nothing) then holds
  config.yaml          every setting, itself a recipe
  metrics.csv          the training, epoch by epoch
  supernet.safetensors all subnets' weights
  search.json          everything that the search evaluated, and a winner inside each limit
  summary.json         the winners, tested once on images that nothing else saw
  front.png            accuracy against size; training.png: the smallest and largest over the epochs
  best/                the exported winner: growtas.export.load("runs/RECIPE/best")

examples:
  growtas run digits
  growtas run digits train.epochs=10 output.dir=runs/short
  growtas run folder data.root=/path/to/images
  growtas run autoformer-tiny data.root=/path/to/imagenet
  torchrun --nproc-per-node 8 -m growtas run autoformer-tiny data.root=/path/to/imagenet
  growtas run autoformer-tiny --print-recipe > mine.yaml
  growtas run runs/digits/config.yaml --resume

{_OVERRIDES}""",
    "train": f"""\
the folder of the run (output.dir; runs/RECIPE if the recipe says nothing) then holds config.yaml,
metrics.csv, checkpoint.pt and supernet.safetensors; `growtas search` and `growtas run --resume` go
on from there.

examples:
  growtas train digits
  growtas train runs/digits/config.yaml --resume
  torchrun --nproc-per-node 8 -m growtas train autoformer-small data.root=/path/to/imagenet

{_OVERRIDES}""",
    "search": f"""\
subnets are scored on images that were kept out of the training; search.json in RUN then holds all
of them and a winner inside each limit. --resume refuses other settings than the search that is
there has, except for more generations.

examples:
  growtas search runs/digits
  growtas search runs/digits search.limits='[{{max_params: 80K}}]' --overwrite
  growtas search runs/digits search.generations=20 --resume
then `growtas run runs/digits/config.yaml --resume` tests and exports the new winners.

{_OVERRIDES}""",
    "evaluate": f"""\
nothing is written.

examples:
  growtas evaluate runs/digits
  growtas evaluate runs/digits --subnet largest --split test

{_SUBNETS}
{_CHANGES}
{_OVERRIDES}""",
    "extract": f"""\
the folder then holds model.safetensors and config.json, which growtas.export.load reads; what was
written is compared with the supernet.

examples:
  growtas extract runs/digits --to exported/best
  growtas extract runs/digits --subnet 60K --to exported/60K

{_SUBNETS}
{_CHANGES}
{_OVERRIDES}""",
    "predict": """\
prints file, class and probability, separated by tabs, the likeliest class first. Images are
prepared as in the evaluation; folders are searched with all their sub-folders.

examples:
  growtas predict runs/digits/best photo.png
  growtas predict exported/60K folder/of/images --top 5
""",
    "convert": f"""\
which way, the content of IN decides.

examples:
  growtas convert supernet-tiny.pth tiny.safetensors --space autoformer-tiny
  growtas convert prenas.pth tiny.safetensors --space autoformer-tiny --qkv-bias blocks
  growtas convert runs/tiny supernet-tiny.pth
search and evaluate a released AutoFormer checkpoint on an image folder:
  growtas convert supernet-tiny.pth runs/tiny --recipe autoformer-tiny data.root=/path/to/imagenet
  growtas search runs/tiny search.limits='[{{max_params: 6M}}]'
  growtas evaluate runs/tiny --subnet AutoFormer-T.yaml --split test

{_OVERRIDES}""",
    "info": """\
for each operator, device and dtype: the backend that runs it, and why each other one does not. A
report of a problem should hold what this prints.

examples:
  growtas info
  GROWTAS_BACKEND=reference growtas info --json
""",
}
