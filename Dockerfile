# fewbit-server as a container image. deploy/container/build.sh calls this with the labels filled in; by hand:
#   docker build --target cpu -t fewbit:cpu .          the CPU runtime
#   docker build --target cuda -t fewbit:cuda .        with the CUDA kernels
#   docker build --target test .                       builds and runs the tests that need no GPU
# The base images are build arguments: any Debian 12 or Ubuntu 24.04 does for building, with a CUDA 13 toolkit in /usr/local/cuda for
# CUDA_BASE. The cpu image has no base: all that the programs need comes along. CUDA_RUNTIME needs a C library that is no older than that of
# CUDA_BASE, nothing else; the driver's libraries come from NVIDIA's container toolkit.
ARG CPU_BASE=docker.io/library/debian:bookworm-slim
ARG CUDA_BASE=docker.io/nvidia/cuda:13.0.2-devel-ubuntu24.04
ARG CUDA_RUNTIME=docker.io/nvidia/cuda:13.0.2-base-ubuntu24.04

# Packages and SentencePiece first: they change rarely.
FROM ${CPU_BASE} AS cpu-packages
WORKDIR /src
COPY deploy/apt-packages.txt deploy/common.sh deploy/setup.sh deploy/
COPY deploy/container/packages.sh deploy/container/
COPY server/sentencepiece.sh server/
RUN deploy/container/packages.sh

FROM cpu-packages AS cpu-build
ARG COMMIT=
COPY . .
RUN --mount=type=cache,target=/ccache CCACHE_DIR=/ccache deploy/container/image.sh --dest=/image --cuda=OFF --commit=${COMMIT}

FROM cpu-build AS test
RUN --mount=type=cache,target=/ccache CCACHE_DIR=/ccache deploy/container/test.sh

FROM ${CUDA_BASE} AS cuda-packages
WORKDIR /src
COPY deploy/apt-packages.txt deploy/common.sh deploy/setup.sh deploy/
COPY deploy/container/packages.sh deploy/container/
COPY server/sentencepiece.sh server/
RUN deploy/container/packages.sh

FROM cuda-packages AS cuda-build
ARG COMMIT=
COPY . .
RUN --mount=type=cache,target=/ccache CCACHE_DIR=/ccache deploy/container/image.sh --dest=/image --cuda=ON --commit=${COMMIT}

FROM ${CUDA_RUNTIME} AS cuda
COPY --from=cuda-build /image/root/ /
ARG VERSION=unknown
ARG COMMIT=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="fewbit" \
      org.opencontainers.image.description="Serves language models with 2-, 4- and 16-bit weights over gRPC, on NVIDIA GPUs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
# What NVIDIA's container toolkit gives the container: the driver's libraries for computing and for nvidia-smi's numbers.
# The kernels are compiled for their devices: nothing to cache, and nowhere to write it.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility CUDA_CACHE_DISABLE=1
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64
USER 65532:65532
EXPOSE 8033 8034
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s CMD ["/usr/bin/fewbit-client", "--health", "--tryfromenv=address,tls_ca,tls_name,tls_cert,tls_key"]
ENTRYPOINT ["/usr/bin/fewbit-server"]
CMD ["--model=/models/fewbit-demo-29m", "--host=0.0.0.0", "--insecure_bind"]

FROM scratch AS cpu
COPY --from=cpu-build /image/libc/ /
COPY --from=cpu-build /image/root/ /
ARG VERSION=unknown
ARG COMMIT=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="fewbit" \
      org.opencontainers.image.description="Serves language models with 2-, 4- and 16-bit weights over gRPC, on CPUs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
EXPOSE 8033 8034
# SIGTERM drains; give it longer than --drain_seconds before killing (docker stop --time=40).
STOPSIGNAL SIGTERM
# Asks the server itself. The environment may name another address or certificates: FLAGS_address, FLAGS_tls_ca, FLAGS_tls_name.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/usr/bin/fewbit-client", "--health", "--tryfromenv=address,tls_ca,tls_name,tls_cert,tls_key"]
ENTRYPOINT ["/usr/bin/fewbit-server"]
# Plain text on the address that a published port needs: a demo. Anything else mounts certificates and says --tls_cert and --tls_key instead.
CMD ["--model=/models/fewbit-demo-29m", "--host=0.0.0.0", "--insecure_bind"]
