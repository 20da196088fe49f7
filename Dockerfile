# Any Debian with Rust builds it, and any base with glibc and CA certificates runs it.
ARG BUILD_IMAGE=docker.io/library/rust:1-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# The dependencies first: they are built again only when the lock file changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --release --locked && rm -r src
COPY src src
# Newer than what the step before left behind.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

FROM ${RUNTIME_IMAGE}
LABEL org.opencontainers.image.title="keyward" \
      org.opencontainers.image.description="A validating reverse-proxy sidecar for Scalekit API keys" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /src/target/release/keyward /keyward
# Nothing is written, so the root may be read-only. No shell is needed.
USER 65532:65532
ENV KEYWARD_CONFIG=/etc/keyward/keyward.toml
EXPOSE 4480
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s CMD ["/keyward", "healthcheck"]
ENTRYPOINT ["/keyward"]
CMD ["run"]
