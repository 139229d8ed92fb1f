"""ALP-GMM, Covar-GMM, RIAC and Random on the hypercube as their authors' loops do them: NumPy, SciPy, scikit-learn.

Written from the papers' equations and the reference's described behaviour (teachDeepRL), one episode after the other:
a main k-d tree with a buffer of 500 whose tree is built anew at every query, `GaussianMixture` for each number of
components, regions of Python lists.
"""

import sys
import time

import numpy as np

FIT_RATE = 250
BUFFER = 500


class Hypercube:
    """The world and its student."""

    def __init__(self, dimensions, cells):
        self.cells = cells
        self.competence = np.zeros((cells,) * dimensions)

    def episode(self, task):
        """Return of a task in [0, 1]^d."""
        cell = tuple(np.minimum((task * self.cells).astype(int), self.cells - 1))
        here = tuple(slice(max(0, k - 1), k + 1) for k in cell)
        around = self.competence[here].copy()
        around[(-1,) * len(cell)] = 0
        if not any(cell) or np.any(around >= 75):
            self.competence[cell] = min(self.competence[cell] + 1, 100)
        return self.competence[cell] / 100

    def score(self):
        """Percentage of mastered cells."""
        return 100 * np.mean(self.competence > 75)


class Random:
    """Uniform tasks."""

    def __init__(self, dimensions, rng):
        self.dimensions, self.rng = dimensions, rng

    def sample(self):
        """A task."""
        return self.rng.random(self.dimensions).astype(np.float32)

    def update(self, task, ret):
        """Nothing to learn."""


class _Mixtures(Random):
    """What ALP-GMM and Covar-GMM share: fits every 250 episodes, and sampling by a score of components."""

    ratio = 0.2

    def __init__(self, dimensions, rng):
        super().__init__(dimensions, rng)
        self.rows, self.mixture, self.episodes = [], None, 0

    def fit(self):
        """The mixture of 2 to 10 Gaussians with the lowest AIC."""
        from sklearn.mixture import GaussianMixture

        data = np.array(self.rows[-FIT_RATE:])
        fitted = [
            GaussianMixture(k, random_state=int(self.rng.integers(1 << 31))).fit(data) for k in range(2, 11)
        ]
        self.mixture = fitted[int(np.argmin([own.aic(data) for own in fitted]))]

    def sample(self):
        """A task: from a component in proportion to its score, or uniform."""
        if self.mixture is None or self.rng.random() < self.ratio:
            return super().sample()
        scores = self.scores()
        share = scores / scores.sum() if scores.sum() > 0 else np.full(len(scores), 1 / len(scores))
        chosen = self.rng.choice(len(share), p=share)
        drawn = self.rng.multivariate_normal(self.mixture.means_[chosen], self.mixture.covariances_[chosen])
        return np.clip(drawn[: self.dimensions], 0, 1).astype(np.float32)


class ALPGMM(_Mixtures):
    """Component score: its mean absolute learning progress."""

    def __init__(self, dimensions, rng):
        super().__init__(dimensions, rng)
        self.tree, self.main, self.buffer, self.returns = None, [], [], []

    def update(self, task, ret):
        """Progress against the nearest earlier task, and a fit where it is time."""
        progress = abs(ret - self.nearest_return(task)) if len(self.returns) > 5 else 0.0
        self.buffer.append(task)
        self.returns.append(ret)
        if len(self.buffer) == BUFFER:
            from scipy.spatial import cKDTree

            self.main += self.buffer
            self.buffer, self.tree = [], cKDTree(np.array(self.main))
        self.rows.append([*task, progress])
        if len(self.rows) % FIT_RATE == 0:
            self.fit()

    def nearest_return(self, task):
        """Return of the nearest earlier task."""
        from scipy.spatial import cKDTree

        found = []
        if self.tree is not None:
            distance, place = self.tree.query(task)
            found.append((distance, int(place)))
        if self.buffer:
            distance, place = cKDTree(np.array(self.buffer)).query(task)
            found.append((distance, len(self.main) + int(place)))
        return self.returns[min(found)[1]]

    def scores(self):
        """Of the components."""
        return self.mixture.means_[:, -1]


class CovarGMM(_Mixtures):
    """Component score: covariance of time and return."""

    def update(self, task, ret):
        """Notes the episode, and fits where it is time."""
        self.rows.append([*task, (len(self.rows) % FIT_RATE) / FIT_RATE, ret])
        if len(self.rows) % FIT_RATE == 0:
            self.fit()

    def scores(self):
        """Of the components."""
        return np.maximum(self.mixture.covariances_[:, -2, -1], 0)


def alp_of(returns, window=200):
    """|mean of the earlier half - mean of the later half| of the last returns."""
    count = min(len(returns), window)
    half = count // 2
    if len(returns) <= 2:
        return 0.0
    last = returns[-count:]
    return abs(np.mean(last[:-half]) - np.mean(last[-half:]))


class _Region:
    def __init__(self, low, high, episodes=()):
        self.low, self.high, self.episodes, self.children = low, high, list(episodes), []
        self.alp = 0.0

    def holds(self, task):
        return bool(np.all((task >= self.low) & (task <= self.high)))


class RIAC(Random):
    """Boxes that split where learning progress differs; scores of splits as the reference's code has them."""

    size, attempts, least, ratio, discard = 200, 50, 10, 1 / 15, 50

    def __init__(self, dimensions, rng):
        super().__init__(dimensions, rng)
        self.regions = [_Region(np.zeros(dimensions), np.ones(dimensions))]

    def sample(self):
        """A mutated, a uniform, or a region's task."""
        alps = np.array([region.alp for region in self.regions])
        share = alps / alps.sum() if alps.sum() > 0 else np.full(len(alps), 1 / len(alps))
        mode, region = self.rng.random(), self.regions[self.rng.choice(len(share), p=share)]
        if mode < 0.1 and region.episodes:
            worst = min(region.episodes, key=lambda own: own[1])[0]
            near = self.rng.normal(worst, 0.1)
            return np.clip(near, region.low + 1e-5, region.high - 1e-5).astype(np.float32)
        if mode < 0.3:
            return super().sample()
        return self.rng.uniform(region.low, region.high).astype(np.float32)

    def update(self, task, ret):
        """All regions that hold the task note it; a full leaf splits."""
        touched = [region for region in self.regions if region.holds(task)]
        for region in touched:
            region.episodes = region.episodes[-self.size :] + [(task, ret)]
        for region in touched:
            if not region.children and len(region.episodes) > self.size and not self.split(region):
                region.episodes = region.episodes[self.discard :]
        for region in touched:
            region.alp = alp_of([own[1] for own in region.episodes])

    def split(self, region):
        """Whether a valid cut was found; then the region has two children."""
        tasks = np.array([own[0] for own in region.episodes])
        returns = [own[1] for own in region.episodes]
        best = None
        for _ in range(self.attempts):
            for _ in range(16):
                axis = self.rng.integers(self.dimensions)
                cut = self.rng.uniform(region.low[axis], region.high[axis])
                left = tasks[:, axis] <= cut
                if min(left.sum(), (~left).sum()) >= self.least:
                    break
            else:
                continue
            sides = [region.high - region.low, region.high - region.low]
            sides[0][axis], sides[1][axis] = cut - region.low[axis], region.high[axis] - cut
            if min(side.min() for side in sides) < self.ratio:
                continue
            parts = [
                [r for r, own in zip(returns, left == side, strict=True) if own] for side in (True, False)
            ]
            score = 4 * abs(alp_of(parts[0]) - alp_of(parts[1]))
            if best is None or score >= best[0]:
                best = (score, axis, cut, left)
        if best is None:
            return False
        _, axis, cut, left = best
        for side in (True, False):
            low, high = region.low.copy(), region.high.copy()
            (high if side else low)[axis] = cut
            own = [e for e, member in zip(region.episodes, left == side, strict=True) if member]
            child = _Region(low, high, own)
            child.alp = alp_of([e[1] for e in own])
            region.children.append(child)
        self.regions += region.children
        return True


TEACHERS = {"alp-gmm": ALPGMM, "covar-gmm": CovarGMM, "riac": RIAC, "random": Random}


def main(given, written):
    """Reads teacher, dimensions, cells, episodes, every, seeds; writes curves [seeds, points], seconds and cpu."""
    inputs = np.load(given)
    dimensions, cells = int(inputs["dimensions"]), int(inputs["cells"])
    curves, seconds, cpu = [], [], []
    for seed in inputs["seeds"]:
        world, curve = Hypercube(dimensions, cells), []
        teacher = TEACHERS[str(inputs["teacher"])](dimensions, np.random.default_rng(int(seed)))
        began, began_cpu = time.perf_counter(), time.process_time()
        for episode in range(1, int(inputs["episodes"]) + 1):
            task = teacher.sample()
            teacher.update(task, world.episode(task))
            if episode % int(inputs["every"]) == 0:
                curve.append(world.score())
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
        curves.append(curve)
    np.savez(written, curves=curves, seconds=seconds, cpu=cpu)


if __name__ == "__main__":
    main(*sys.argv[1:])
