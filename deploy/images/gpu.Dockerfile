# A machine with NVIDIA GPUs as one container: vLLM and its kernels for CUDA, our own for the cores
# beside them, no weights. Some 10 GB.
#
#   docker build -f deploy/images/gpu.Dockerfile -t shuntserve/node .
#
# The driver comes from the host. Behind a proxy with a certificate of its own, hand over its bundle:
# --secret id=ca,src=FILE.
FROM python:3.11-slim-bookworm AS base
ENV PATH=/opt/shunt/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
# Triton makes its launchers on the machine, with a compiler and Python's headers.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libgomp1 libnuma1 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 shunt \
 && useradd --uid 10001 --gid 10001 --create-home --home-dir /home/shunt shunt \
 && mkdir -p /var/lib/shunt/store /opt/cache \
 && chown -R shunt:shunt /var/lib/shunt /opt/cache \
 && python3 -m venv /opt/shunt
COPY constraints-vllm.txt constraints.txt deploy/vllm/cuda-pins.sh deploy/images/install.sh /build/

FROM base AS package
COPY hatch_build.py pyproject.toml README.md LICENSE /build/
COPY protos /build/protos
COPY simulator /build/simulator
COPY deploy/ec2 /build/deploy/ec2
COPY services /build/services
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/pip \
    /build/install.sh wheel && /build/install.sh services

FROM base AS node
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/pip \
    /build/install.sh vllm
# Behind pip, whose cache would be there, too, and not where the builder keeps it.
ENV XDG_CACHE_HOME=/opt/cache
COPY deploy/ec2/host /opt/host
COPY --from=package /services /opt/shunt
RUN /build/install.sh compiled services.cli.__main__ services.cli.node.__main__ \
    services.tensorstore.__main__ services.engine.__main__ torch
USER shunt
RUN python -m services.engine.native.kernels /opt/cache/shuntserve/kernels
# What the driver's container runtime is to bring: computing, and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
EXPOSE 7010
ENTRYPOINT ["shunt", "node"]
