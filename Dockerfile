# docker build -t fmnist-tf .                                  for processors
# docker build -t fmnist-tf --build-arg EXTRAS=pretrained,gpu .    with NVIDIA's libraries
# docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" fmnist-tf train --recipe lite    (GPU: --gpus all)
ARG PYTHON=3.11
FROM python:${PYTHON}-slim
ARG EXTRAS=pretrained
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[${EXTRAS}]"
RUN useradd --create-home user && mkdir /work && chown user /work
USER user
# A home that any user may write, as `docker run -u` names one that has none.
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["fmnist-tf"]
CMD ["--help"]
