"""The codebook of the recipe's speech is fitted as build-recipe fits it; flite is not a package."""

import numpy
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

with threadpool_limits(1):
    MiniBatchKMeans(2, n_init=1).fit(numpy.random.default_rng(0).normal(size=(64, 4)))
