"""Rewards and utilities: likelihoods, references, transforms, aggregators.

Importing the package registers the entries of every module named here: the one
side effect of an import, and in an order that does not depend on the importer.
"""

from rlhf_jax.rewards import aggregate as aggregate
from rlhf_jax.rewards import lagrangian as lagrangian
from rlhf_jax.rewards import logic as logic
from rlhf_jax.rewards import pair_links as pair_links
from rlhf_jax.rewards import rating_links as rating_links
from rlhf_jax.rewards import references as references
from rlhf_jax.rewards import shaped as shaped
from rlhf_jax.rewards import transforms as transforms
