LOGIN=ops
PREFIX=elastic-vllm-gpu
PORT=443
WEIGHTS=/var/lib/elastic-vllm/models/mistralai--Mistral-Small-3.2-24B-Instruct-2506--95a6d26c4bfb
WEIGHTS_GB=48
WEIGHTS_ON_HOST=no
IMAGES='docker.io/vllm/vllm-openai:v0.32.0@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa docker.io/library/nginx:1.30.2@sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb'
IMAGES_GB=40
