# Train in a container. `--gpus all` where there are GPUs; --shm-size is for workers that load data.
#   docker build --tag savepoint .
#   docker run --rm --init --shm-size 2g --volume "$PWD/runs:/savepoint/runs" savepoint python train.py
# MLflow's database stays in the container, and what it shows lies in runs/ too: `python -m savepoint sync --all` outside.
FROM python:3.11-slim
# git: a run records its commit and what was not committed. .git is in the image for that.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /savepoint
# First what the installation reads, so that a change of code does not install everything anew.
COPY pyproject.toml constraints.txt README.md ./
COPY src/savepoint/__init__.py src/savepoint/
RUN python -m pip install --no-cache-dir --constraint constraints.txt --editable ".[dev]"
COPY . .
CMD ["python", "train.py"]
