"""Are claims about directions honest? Simulated streams whose true answers are known.

A stream of d dimensions holds a part that all questions share, four option directions and noise; a
final RMSNorm and the option directions read it. It is overconfident by a factor, and in some cases
favours one letter. A direction that knows nothing is drawn as the controls are; one that corrects
takes the favour back too. Each is judged by the rule of this version, a rank among matched controls
by NLL on a grid that reaches past the best, and by what stood here before: best of 20 isotropic
directions by ECE on scales up to 2.

    python benchmarks/controls.py                 # some ten minutes on two cores
    python benchmarks/controls.py --part rank --repeats 200

After ``make study``, on its residuals: does it matter to which direction they are matched?

    python benchmarks/controls.py --part sets
"""

import argparse
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from tqdm import tqdm

from layercal.metrics import calibration, paired
from layercal.model import load
from layercal.results import Results
from layercal.steering import claims, interventions, tally
from layercal.steering.controls import matched_directions
from layercal.steering.directions import Split
from layercal.steering.fitted import Fitted

WIDTH, FOLDS, CONTROLS = 128, 5, 200
SCALES = [0, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6]
SCALES_BEFORE = [0, 0.25, 0.5, 0.75, 1, 1.5, 2]
SHARPNESS = 3.0


def stream(rng, n, favour):
    """Stream (n, d), option rows (4, d), answers; the reading is three times too sharp."""
    rows = np.linalg.qr(rng.normal(size=(WIDTH, 5)))[0].T
    options, shared = rows[:4], rows[4]
    z = 1.2 * rng.normal(size=(n, 4))
    answer = (rng.random((n, 1)) > softmax(z, -1).cumsum(-1)).sum(-1).clip(0, 3)
    z = SHARPNESS * z + favour * np.eye(4)[0]
    rest = rng.normal(size=(n, WIDTH))
    rest -= rest @ rows.T @ rows
    h = 10 * shared + 8 * rest / np.linalg.norm(rest, axis=-1, keepdims=True)
    # the rows are so long that the norm of what they do not see sets the scale of the logits
    h += z @ options * 0.3
    return h, options / 0.3 * np.linalg.norm(h, axis=-1).mean(), answer


def read(h, options, vectors, scales):
    """Logits (directions, scales, n, 4) of a stream moved by each vector at each scale."""
    eta = np.array(scales) * np.linalg.norm(h, axis=-1).mean()
    seen, pushed = h @ options.T, vectors @ options.T
    along, square = h @ vectors.T, (h**2).sum(-1)
    grown = square + 2 * eta[:, None] * along.T[:, None] + eta[:, None] ** 2
    logits = seen + eta[:, None, None] * pushed[:, None, None]
    return logits / np.sqrt(grown)[..., None]


def matched(rng, options, shared, count, cosine=0.2):
    """Directions off the options, at one cosine to what the stream shares."""
    drawn = rng.normal(size=(count, WIDTH))
    basis = np.concatenate([np.linalg.qr(options.T)[0].T, shared[None]])
    drawn -= drawn @ basis.T @ basis
    drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
    return cosine * shared + np.sqrt(1 - cosine**2) * drawn


def scored(logits, answer, fold, scales):
    """Cross-fitted changes of each direction, by this version's rule."""
    rows = tally.score_rows(logits, answer, 1)  # NLL decides; bins are not looked at
    sums = np.stack([rows[..., fold == f, :].sum(-2) for f in np.unique(fold)])
    made = {"cell": fold, "fold": fold, "alphas": scales, "accuracy_margin": 0.02}
    return tally.Tally(sums={"lens": sums[:, None]}, **made).changes("lens", [0])


def relative_before(logits, answer, fold):
    """Cross-fitted relative changes of ECE of each direction, by the rule before."""
    p = softmax(logits, -1)
    confidence, correct = p.max(-1), logits.argmax(-1) == answer
    after = np.empty((2, len(logits), len(answer)))
    for f in range(FOLDS):
        others, own = fold != f, fold == f
        errors = calibration.ece(confidence[..., others], correct[..., others])
        accuracy = correct[..., others].mean(-1)
        chosen = np.where(accuracy >= accuracy[:, :1] - 0.02, errors, np.inf).argmin(-1)
        place = np.arange(len(logits))[:, None], chosen[:, None], np.flatnonzero(own)
        after[0][:, own], after[1][:, own] = confidence[place], correct[place]
    before = calibration.ece(confidence[0, 0], correct[0, 0])
    return calibration.ece(after[0], after[1]) / before - 1


CASES = {  # favour of one letter, and how much of it the direction takes back
    "knows nothing": (0.0, 0.0),
    "favours a letter": (0.0, -0.003),
    "corrects a letter": (1.5, 0.012),
}


def rank_once(seed, n, favour, back, draws=2):
    """Outcomes of one set of questions under several draws of the controls, by both rules."""
    rng = np.random.default_rng(seed)
    h, options, answer = stream(rng, n, favour)
    fold, shared = rng.permutation(n) % FOLDS, h.mean(0)
    shared -= shared @ np.linalg.pinv(options) @ options
    shared /= np.linalg.norm(shared)
    own = matched(rng, options, shared, 1)[0]
    own = own - back * options[0] / np.linalg.norm(options[0])
    own /= np.linalg.norm(own)
    now, both, before = [], [], []
    for _ in range(draws):
        theirs = matched(rng, options, shared, CONTROLS, own @ shared)
        changes = scored(read(h, options, np.vstack([own, theirs]), SCALES), answer, fold, SCALES)
        rank = tally.rank_p(changes["nll"][0], changes["nll"][1:])
        now.append(rank <= 0.05)
        both.append(rank <= 0.05 and beyond_growth(h, options, own, answer, fold))
        drawn = rng.normal(size=(20, WIDTH))
        drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
        logits = read(h, options, np.vstack([own, drawn]), SCALES_BEFORE)
        relative = relative_before(logits, answer, fold)
        before.append(relative[0] < relative[1:].min() - 1e-6)
    return now, both, before


def beyond_growth(h, options, own, answer, fold):
    """Whether a direction beats the temperature of its own growth, at a level of .025 one-sided."""
    logits = read(h, options, own[None], SCALES)[0]
    still, eta = h @ options.T, np.array(SCALES) * np.linalg.norm(h, axis=-1).mean()
    norm = np.sqrt((h**2).sum(-1) + 2 * eta[:, None] * (h @ own) + eta[:, None] ** 2)
    scored = []
    for settings in (still / norm[..., None], logits):
        nll = paired.losses(settings, answer)["nll"]
        found = np.empty(len(answer))
        for f in range(FOLDS):
            chosen = nll[:, fold != f].mean(-1).argmin()
            found[fold == f] = nll[chosen, fold == f]
        scored.append(found)
    return paired.mean_change(scored[1] - scored[0], np.arange(len(answer))).interval()[1] < 0


def sets_matched(results, scales):
    """Changes of NLL by layer and direction matched to, of all controls; read at the layer."""
    prompts, fitted = results.prompts, Fitted.load(results.run, results.path("vectors"))
    model = load(results.path("manifest").parent, "float32", "cpu")
    option_ids = torch.tensor(max(prompts["option_ids"], key=len))
    answer, fold = prompts["answer"].to_numpy(), fitted.fold.numpy()
    split = Split(results.residuals, np.empty(0), answer, option_ids, model)
    alphas = torch.tensor(scales, dtype=torch.float32)
    primary = next(iter(fitted.directions))
    wanted = primary, primary.of_part("null-space")
    for layer in fitted.layers:
        h, eta = split.residuals[:, layer].float(), fitted.norms[:, :, layer].diagonal().mean()
        for direction, fits in fitted.directions.items():
            if direction in wanted:
                theirs = matched_directions(split, fits, [layer], CONTROLS, 0)[0, :, None]
                logits = np.empty((CONTROLS, len(scales), len(h), len(option_ids)))
                for place, one in enumerate(theirs):
                    moved = interventions.add(h, one[None], (eta * alphas)[None], alphas)[:, 0]
                    with torch.inference_mode():
                        logits[place] = model.option_logits(moved, option_ids).transpose(0, 1)
                yield layer, direction.name, scored(logits, answer, fold, scales)["nll"]


RULES = (
    "rank p <= .05 among 200 matched",
    "and beyond the temperature of equal growth",
    "before: best of 20 isotropic",
)


def nll_of(z, answer, factor):
    return -log_softmax(factor * z, -1)[np.arange(len(answer)), answer]


def partner(factor, size=400_000):
    """The factor below 1 whose true NLL is that of a factor above 1."""
    rng = np.random.default_rng(7)
    z = 1.2 * rng.normal(size=(size, 4))
    p = softmax(z, -1)

    def expected(one):
        return -(p * log_softmax(one * z, -1)).sum(-1).mean()

    low, high = 0.05, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) > expected(factor) else (low, middle)
    return (low + high) / 2


def paired_once(seed, n, factor, other, shift):
    """Whether a fall, a rise or none is said, of readings whose NLL truly differs by a shift."""
    rng = np.random.default_rng(seed)
    z = 1.2 * rng.normal(size=(n, 4))
    answer = (rng.random((n, 1)) > softmax(z, -1).cumsum(-1)).sum(-1).clip(0, 3)
    difference = nll_of(z, answer, factor) - nll_of(z, answer, other) + shift
    found = paired.mean_change(difference, np.arange(n))
    row = {"x_change": found.value, "x_change_error": found.error}
    row |= {"freedom": found.freedom, "nll_margin": 0.01}
    low, high = found.interval()
    outcome = claims.three_way(row, "x", 0.05)[0]
    return low > shift or high < shift, found.p <= 0.05, outcome == claims.REFUTED


def repeat(pool, function, repeats, *arguments):
    tasks = [(seed, *arguments) for seed in range(repeats)]
    mapped = pool.map(function, *zip(*tasks, strict=True), chunksize=4)
    return np.array(list(tqdm(mapped, total=repeats, leave=False, disable=None)), float)


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--part", choices=["rank", "paired", "sets"], action="append")
    made.add_argument("--repeats", type=int, default=200)
    made.add_argument("--n", type=int, nargs="+", default=[281, 1500], help="questions")
    made.add_argument("--study", default="embedded", help="of which --part sets reads")
    made.add_argument("--model", default="qwen2.5-coder-1.5b")
    made.add_argument("--questions", default="mmlu-dev")
    args = made.parse_args()
    parts = args.part or ["rank", "paired"]
    with ProcessPoolExecutor() as pool:
        if "rank" in parts:
            print("Claims that a direction does more than controls, and how they hang on the draw")
            print("| direction | n | rule | claimed | outcome turns with the draw |")
            print("|---|---|---|---|---|")
            for name, case in CASES.items():
                for n in args.n:
                    found = repeat(pool, rank_once, args.repeats, n, *case)
                    for place, rule in enumerate(RULES):
                        said = found[:, place]
                        turns = np.minimum(said.mean(1), 1 - said.mean(1)).mean()
                        print(f"| {name} | {n} | {rule} | {said.mean():.3f} | {turns:.3f} |")
        if "sets" in parts:
            print("| layer | controls matched to | change of NLL: median | lowest | highest |")
            print("|---|---|---|---|---|")
            of_study = Results(args.study, args.model, args.questions)
            for layer, name, change in sets_matched(of_study, SCALES):
                said = f"{np.median(change):.4f} | {change.min():.4f} | {change.max():.4f}"
                print(f"| {layer} | {name} | {said} |", flush=True)
        if "paired" in parts:
            print("\nPaired NLL of readings, by true difference in nats; margin 0.01")
            print("| readings | difference | n | interval misses | p <= .05 | a fall is refuted |")
            print("|---|---|---|---|---|---|")
            pairs = {
                "over- and underconfident": (2.0, partner(2.0)),
                "nearly equal": (1.03, partner(1.03)),
            }
            for name, (one, other) in pairs.items():
                for shift in (0.0, -0.01):
                    for n in args.n:
                        rate = repeat(pool, paired_once, 10 * args.repeats, n, one, other, shift)
                        said = " | ".join(f"{value:.3f}" for value in rate.mean(0))
                        print(f"| {name} | {shift} | {n} | {said} |", flush=True)


if __name__ == "__main__":
    main()
