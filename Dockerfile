# The CPU server in a container:
#   docker build -t fewbit .
#   docker run --rm -p 8033:8033 -p 8034:8034 fewbit
#   docker run --rm -p 8033:8033 -v /path/to/model:/model:ro fewbit --model=/model --host=0.0.0.0 --insecure_bind
ARG BASE=docker.io/library/debian:12-slim

FROM ${BASE} AS build
WORKDIR /src
# Packages and SentencePiece first: they change rarely.
COPY deploy/apt-packages.txt deploy/common.sh deploy/setup.sh deploy/
COPY server/sentencepiece.sh server/
RUN apt-get update && deploy/setup.sh
COPY . .
RUN cmake --preset release -DFEWBIT_TESTS=OFF \
    && cmake --build --preset release --target fewbit-server fewbit-client \
    && strip build/release/bin/fewbit-server build/release/bin/fewbit-client

FROM ${BASE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
       libgrpc++1.51 libprotobuf32 libabsl20220623 libprometheus-cpp-core1.0 libprometheus-cpp-pull1.0 libspdlog1.10 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/build/release/bin/fewbit-server /src/build/release/bin/fewbit-client /usr/local/bin/
COPY --from=build /src/deploy/models/fewbit-demo-29m /models/fewbit-demo-29m
COPY --from=build /src/LICENSE /usr/share/doc/fewbit/
USER 65532:65532
EXPOSE 8033 8034
# SIGTERM drains; give it longer than --drain_seconds before killing (docker stop --time=40).
STOPSIGNAL SIGTERM
ENTRYPOINT ["fewbit-server"]
# Plain text on the address that a published port needs: a demo. Anything else mounts certificates and says --tls_cert and --tls_key instead.
CMD ["--model=/models/fewbit-demo-29m", "--host=0.0.0.0", "--insecure_bind"]
