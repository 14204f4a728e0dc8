"""What may stand in prose: figures that a JSON file has, and figures that are no measurement.

A sentence with a figure of ours belongs in `BOUND`, from which its JSON keeps it true. One that no
JSON has is measured by a benchmark first, or it goes. `ALLOWED` is for the rest, by document and
reason; a text there explains the figures within it, wherever it stands in that document.
"""

from collections.abc import Mapping, Sequence

from tests.figures import Bound

PUBLISHED = "published by somebody else, whom the document names"
SETTING = "a default, an option or a limit, of our code or of what it is compared with"
DERIVED = "arithmetic that the document shows"
HELD = "a bound that tests of the same thing hold"
COUNTED = "says how many there are of something that is listed or fixed"

BOUND: Sequence[Bound] = ()

ALLOWED: Mapping[str, Mapping[str, Sequence[str]]] = {
    "CHANGELOG.md": {
        SETTING: ["before 1.0 a minor version may change"],
    },
    "benchmarks/README.md": {
        SETTING: [
            "28 bytes per parameter at the bandwidth of a triad",
            "all four before x is: 48 bytes",
            "Dropout is 0.1 in all",
            "each document of about 4 KB",
            "masked pairs five times over",
            "a run for each length, five times over",
            "with static masks, five times over",
            "the command takes on 50 KB of text",
            "slices of 1 MB would measure imports",
            "an extrapolation to 20 GB of text",
            "The target is 1.2 by the clock",
        ],
    },
    "docs/algorithm.md": {
        PUBLISHED: [
            "BERT Pretraining in 54 minutes",
            "at a peak of 0.007 with equation (8) at 0.01, and finds gaps of 5.28 and 1.91",
        ],
        SETTING: ["against `epsilon` = 1e-6", "With `beta_1` = 0.9 the"],
        DERIVED: [
            "30522 x 1024 word embedding that is 1.8e-4",
            "`m^` is 0.23 times as long as `g`",
            "In bfloat16 `beta_2` = 0.999 rounds to 1",
            "norm above 1.8e19 counts",
            "one below 4e-16 an element",
            "Above 3.4e38, a norm of 1.8e19, it is infinite",
            "below 2^-126 = 1.2e-38 are lost",
            "2^-51 = 4.4e-16 on",
            "one element of 2e-19 among 10^4 of 2e-20",
            "reaches 1.1e-19 the gradient counts",
            "below 0.2 to 0.4 % of an element",
            "`eta` is below 0.002",
            "root mean square below 7.1e-4",
        ],
    },
    "docs/choosing.md": {
        PUBLISHED: ["From the LAMB paper's 0.006 at", "the LANS paper takes 0.00675"],
        SETTING: [
            "with `beta_2` = 0.999 the second moment",
            "Rates from 0.001 to 0.01 are usual",
        ],
        DERIVED: ["0.005 is half a percent of its length"],
    },
    "docs/data.md": {
        PUBLISHED: [
            "until 15 % are spent, 80 % of these shown as `[MASK]`, 10 % kept, 10 % replaced",
            "A document that is drawn short (10 %)",
        ],
        SETTING: [
            "each pair once instead of five times",
            "4 KB as the manifest has them",
            "come from the same 64 MB bucket",
            "no full row has fewer masks than 15 %",
            "a chunk of text (8 MB), a bucket (64 MB of text)",
            "a partition of the examples (32 MB of text)",
            "8 bytes for each partition",
            "token ids of all duplicates (2 bytes each",
            "or a partition (32 MB of",
            "--flink_version=1.20",
        ],
    },
    "docs/export.md": {
        HELD: ["at most 1e-5 apart from what the checkpoint's own model"],
        COUNTED: ["two of the 25 spacing marks with a combining class"],
        SETTING: [
            "a layer norm with epsilon 1e-5, where BERT has the tanh approximation and 1e-12",
            "differ by more than 1e-5 until the loaded model is told",
            "epsilon = 1e-12",
        ],
    },
    "docs/finetuning.md": {
        SETTING: ["--learning_rates=3e-5,1e-4,3e-4", "learning_rates: [3e-5, 1e-4, 3e-4]"],
    },
    "docs/getting_started.md": {
        SETTING: ["Rates from 0.001 to 0.01 are usual"],
    },
    "docs/keras.md": {
        COUNTED: ["the only one of the three that does not"],
    },
    "docs/migrating.md": {
        SETTING: [
            "`weight_decay` defaults to 0.01",
            "| 0.001, 0.9, 0.999 | the same | the same |",
            "| `epsilon` | 1e-7 | `epsilon` | 1e-6 |",
            "| `weight_decay`, inside the ratio | 0.01 |",
            "| `False`, 0.99, `None`",
            "| `learning_rate`, or `lr` in its place | 0.001 | `learning_rate` | 0.001 |",
            "| `beta_1`, `beta_2`, `epsilon` | 0.9, 0.999, 1e-6 | the same | the same |",
            "formerly `weight_decay_rate` | 0.0 | `weight_decay` | 0.01 |",
            "| `decay` | 0.0 | none: use a schedule | |",
            "0.001, weight_decay=0.01, exclude_from_weight_decay",
            "| `weight_decay_rate` | 0.0 | `weight_decay` | 0.01 |",
            "| `epsilon`; `None` raises | 1e-6 | `epsilon`, a number above 0 | 1e-6 |",
            "| `lr` | 1e-3 | `learning_rate` | 0.001 |",
            "| `betas` | (0.9, 0.999) | `beta_1`, `beta_2` | 0.9, 0.999 |",
            "| `eps` | 1e-6 | `epsilon` | 1e-6 |",
            "per parameter group | 0.01 |",
            "with `exclude_from_weight_decay` | 0.01 |",
            "| `max_grad_norm`, of all groups together | 1.0 |",
            '"weight_decay": 0.0}], lr=0.006',
            "| `lr` 1e-3 | `learning_rate` 0.001 | `learning_rate` 0.001 |",
            "| `betas` (0.9, 0.999) | `beta1` 0.9, `beta2` 0.999 | `beta_1` 0.9, `beta_2` 0.999 |",
            "| `eps` 1e-6 | `epsilon` 1e-6 | `epsilon` 1e-6 |",
            "0.01, per group | `wd` 0.0",
            "`weight_decay` 0.01, patterns",
            "| `polynomial.end_learning_rate` | 0.0001 | `final_learning_rate` = 0.0 |",
            "tf-models-official 2.20. The same code",
        ],
        DERIVED: [
            "elements of 0.02 the ratio is about 0.02, and the same 0.01 decays 50 times less",
            "a gradient of norm 1e-4 differs by 1 %",
            "An initial rate of 0.007 over 3519 steps with 1500 of warmup peaks at "
            "0.007 (1 - 1500 / 3519) = 0.0040. To peak at 0.007 it must start at "
            "0.007 * 3519 / 2019",
        ],
    },
    "docs/planning.md": {
        SETTING: [
            "1.3 word pieces a word",
            "a corpus that is built five times over holds five times the rows",
        ],
    },
    "docs/results.md": {
        PUBLISHED: ['"BERT-Large in 54 minutes"'],
    },
    "docs/scale.md": {
        SETTING: [
            "makes them 50 MiB",
            "every 15 seconds",
            "have 5 seconds to end by themselves",
            "SIGKILL 10 seconds after their grace",
            "their grace and 10 seconds more",
            "120 seconds before the time is up",
            "90 seconds of grace lie within those 120",
            "two minutes after the first one ended",
        ],
    },
    "docs/tpu.md": {
        PUBLISHED: ["A v5e core has 16 GiB"],
        SETTING: ["More than 1e-5 or 1e-2 is a problem"],
        COUNTED: ["whether there is one of 2.20"],
    },
    "docs/troubleshooting.md": {
        PUBLISHED: ["a scale of 1e-12 and below"],
        DERIVED: ["beta_2 = 0.999 is 1 in bfloat16"],
    },
}
