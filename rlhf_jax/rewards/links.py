"""Links: how rewards that were not learned by Bradley-Terry read as p(G = 1).

A link says what data a reward is learned from, by which likelihood, and what the
log-probability of "good" is under it. That utility is a registered transform, so
a reward of any link can join a logical AND.

To add one, write its negative log-likelihood, register its utility as a
transform, and `register` the Link.
"""

# Importing the others registers their links.
from rlhf_jax.rewards import pair_links as pair_links
from rlhf_jax.rewards import rating_links as rating_links
from rlhf_jax.rewards.link_registry import DATA as DATA
from rlhf_jax.rewards.link_registry import get as get
from rlhf_jax.rewards.link_registry import Link as Link
from rlhf_jax.rewards.link_registry import LinkParams as LinkParams
from rlhf_jax.rewards.link_registry import names as names
from rlhf_jax.rewards.link_registry import register as register
