"""What a drift view says about its numbers and its picture; no torch here."""

from collections.abc import Mapping

#: What each column of the table means, shown on pages and stored in results.
FORMULAS: Mapping[str, str] = {
    "relative_norm": "|W - W0| / |W0|, Frobenius norms: the size of the change against the matrix.",
    "untouched": "Share of neurons whose vectors are equal in every number.",
    "untouched_as_stored": "The same after rounding to the model's own dtype, which is what it computes with.",
    "cosine_mean": "Mean over neurons of the cosine between original and edited vector.",
    "cosine_min": "The smallest of these cosines.",
    "norm_change_mean": "Mean over neurons of (|w| - |w0|) / |w0|.",
    "step_mean": "Mean over neurons of |w - w0| / |w0|.",
    "step_max": "The largest of these steps.",
    "angle_max": "Largest principal angle, in degrees, between the k directions of the residual stream that the "
    "original and the edited matrix write most strongly (their leading right singular vectors).",
    "gap": "k-th singular value of the original over the next one; near 1 the k directions are hardly defined, and a "
    "large angle then says little.",
    "effective_rank": "exp of the entropy of the change's singular values: how many directions share the change.",
    "stable_rank": "|W - W0|^2 / sigma_1^2 of the change: the same, weighed by energy.",
}

#: What a reader must not take from the picture.
WARNING = (
    "t-SNE keeps neighbours together, nothing else: distances between groups, their sizes and densities, and the "
    "length of an arrow mean nothing by themselves. Read how far the weights moved from the numbers beside it."
)
