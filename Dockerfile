# Any Debian with Rust builds it, any base with glibc and CA certificates runs it, on amd64 and arm64 alike:
#   docker build -t keyward .
# Where images have no HEALTHCHECK of their own accord (buildah, podman), add --format docker.
ARG BUILD_IMAGE=docker.io/library/rust:1-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# None by default: no Scalekit emulator is in the image. FEATURES=dev adds `keyward dev` and `keyward emulator`.
ARG FEATURES=""
# The dependencies first: they are built again only when one of these files changes.
COPY Cargo.toml Cargo.lock ./
COPY crates/keyward-emulator/Cargo.toml crates/keyward-emulator/
COPY crates/scalekit/Cargo.toml crates/scalekit/
RUN mkdir src crates/keyward-emulator/src crates/scalekit/src && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs crates/keyward-emulator/src/lib.rs crates/scalekit/src/lib.rs \
    && cargo build --release --locked --package keyward --no-default-features --features "$FEATURES" \
    && rm -r src crates/keyward-emulator/src crates/scalekit/src
COPY src src
COPY crates crates
COPY docs/openapi.json docs/
# Newer than what the step before left behind.
RUN touch src/main.rs src/lib.rs crates/keyward-emulator/src/lib.rs crates/scalekit/src/lib.rs \
    && cargo build --release --locked --package keyward --no-default-features --features "$FEATURES"

FROM ${RUNTIME_IMAGE}
LABEL org.opencontainers.image.title="keyward" \
      org.opencontainers.image.description="A validating reverse-proxy sidecar for Scalekit API keys" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /src/target/release/keyward /keyward
# Nothing is written, so the root may be read-only. No shell is needed.
USER 65532:65532
ENV KEYWARD_CONFIG=/etc/keyward/keyward.toml
# The proxy, and the admin port, which is on loopback unless the route file says otherwise. Publish the first alone.
EXPOSE 4480 4481
STOPSIGNAL SIGTERM
# Ready, not only alive. It stays ready when Scalekit fails later.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/keyward", "healthcheck"]
ENTRYPOINT ["/keyward"]
CMD ["run"]
