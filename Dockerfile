# crossaudit with Ray, for ray_cluster.yaml and docs/cluster/rayjob.yaml.
#
#   docker build --tag registry.example.com/crossaudit:0.1.0 .                              CPU only
#   docker build --tag registry.example.com/crossaudit:0.1.0 --build-arg DEVICE=cuda .      NVIDIA GPUs
#
# All machines of a cluster need the same Python and Ray, so both come from Ray's own image.
ARG DEVICE=cpu

FROM rayproject/ray:2.60.0-py311-cpu AS cpu
# Of two builds of one version pip takes the one with a local label, here torch's "+cpu".
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

FROM rayproject/ray:2.60.0-py311-cu128 AS cuda

FROM ${DEVICE}
COPY --chown=ray:users . /home/ray/crossaudit
RUN pip install --no-cache-dir --constraint /home/ray/crossaudit/constraints.txt "/home/ray/crossaudit[run]" \
    && rm -rf /home/ray/crossaudit
CMD ["crossaudit", "--help"]
