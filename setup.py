"""Packaging. Ranges are those the tests run with; see CONTRIBUTING.md."""

import setuptools

setuptools.setup(
    name='rlhf_jax',
    version='0.1.0',
    description=(
        'Transforming and combining rewards for aligning language models: a'
        ' research codebase in JAX.'
    ),
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['rlhf_jax', 'rlhf_jax.*']),
    install_requires=[
        'absl-py>=2.3,<3',
        'array_record>=0.8.3,<0.9',
        'flax>=0.12,<0.13',
        'grain>=0.2.15,<0.3',
        # Builds for accelerators are the user's choice: pip install jax[tpu].
        'jax>=0.10,<0.11',
        'jaxtyping>=0.3.3,<0.4',
        'matplotlib>=3.10,<4',
        'ml-collections>=1.1,<2',
        'numpy>=2.0,<3',
        'optax>=0.2.6,<0.3',
        'orbax-checkpoint>=0.11.30,<0.13',
        'pandas>=2.2,<4',
        'scipy>=1.14,<2',
        'tensorflow-datasets>=4.9.9,<5',
        'importlib_resources>=6',  # tensorflow-datasets needs it, undeclared
        'tqdm>=4.66,<5',
    ],
    extras_require={
        'test': [
            'beartype>=0.21,<0.24',
            'chex>=0.1.91,<0.2',
            'pyink>=25.12,<27',
            'pytest>=8.4,<10',
            'pytest-xdist>=3.6,<4',
            'ruff>=0.14,<0.18',
        ],
    },
)
