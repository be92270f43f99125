# Training and evaluation on NVIDIA GPUs. Not built yet; linted with hadolint.
#
#   docker build -t unimmad .
#   docker run --gpus all --shm-size 8g --user "$(id -u):$(id -g)" \
#       -v "$PWD/data:/opt/unimmad/data" -v "$PWD/runs:/opt/unimmad/runs" unimmad \
#       deepspeed unimmad/train.py --deepspeed_config ds_configs/ep1.json --data data/mine
#
# /dev/shm: loader processes hand their batches over through it, and NCCL has its buffers there. Docker gives it 64 MB,
# and a process that finds it full dies with "Bus error"; --shm-size gives more, --ipc=host the host's own.
#
# The host needs NVIDIA's driver and its container toolkit; CUDA's libraries come with PyTorch's wheel.
FROM python:3.11-slim-trixie

# torch.compile's Triton and the extensions of DeepSpeed's that a configuration may ask for are compiled when used.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/unimmad
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt -e ".[train,export]" \
    && mkdir -p data runs && chmod 1777 data runs

# For users that have no folder of their own here: caches of weights, of compiled kernels and of Matplotlib's fonts.
ENV HOME=/tmp
USER 1000:1000
CMD ["python", "unimmad/train.py", "--help"]
