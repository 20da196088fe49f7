{{/*
Parts of a pod with Keyward. Each takes a dict:
  name    the name of the ConfigMap
  values  values as in values.yaml; missing ones are not filled in
*/}}

{{/* The version of Keyward that these templates are for. */}}
{{- define "keyward-sidecar.version" -}}0.1.0{{- end }}

{{/* The native sidecar, an item of initContainers: it starts before the service and stops after it. */}}
{{- define "keyward-sidecar.initContainer" -}}
{{- include "keyward-sidecar.container" . }}
  # Makes it a sidecar.
  restartPolicy: Always
{{- end }}

{{/* Keyward's container, as an item of a list. */}}
{{- define "keyward-sidecar.container" -}}
{{- $values := .values -}}
{{- $image := $values.image -}}
- name: keyward
  {{- $repository := required "image.repository is required, such as ghcr.io/OWNER/keyward" $image.repository }}
  {{- if $image.digest }}
  image: {{ printf "%s@%s" $repository $image.digest | quote }}
  {{- else }}
  image: {{ printf "%s:%s" $repository (default (include "keyward-sidecar.version" .) $image.tag) | quote }}
  {{- end }}
  imagePullPolicy: {{ $image.pullPolicy }}
  env:
    - {name: KEYWARD_CONFIG, value: /etc/keyward/keyward.toml}
    - {name: SCALEKIT_ENVIRONMENT_URL_FILE, value: /run/secrets/scalekit/environment_url}
    - {name: SCALEKIT_CLIENT_ID_FILE, value: /run/secrets/scalekit/client_id}
    - {name: SCALEKIT_CLIENT_SECRET_FILE, value: /run/secrets/scalekit/client_secret}
    {{- with $values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - {name: keyward, containerPort: 4480}
    - {name: keyward-admin, containerPort: 4481}
  # A service in the same pod starts when Keyward is alive. It does not wait for Scalekit, which public routes do not need.
  startupProbe:
    httpGet: {path: /livez, port: keyward-admin}
    periodSeconds: 1
    failureThreshold: 30
  # Not ready until Scalekit was reached once. A later outage does not make the pod unready.
  readinessProbe:
    httpGet: {path: /readyz, port: keyward-admin}
    periodSeconds: 2
    failureThreshold: 1
  livenessProbe:
    httpGet: {path: /livez, port: keyward-admin}
    periodSeconds: 10
  lifecycle:
    # In a pod with a service, this begins when Kubernetes begins to stop the pod, while the service still runs.
    preStop:
      exec: {command: [/keyward, drain]}
  resources:
    {{- toYaml $values.resources | nindent 4 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
    seccompProfile: {type: RuntimeDefault}
  volumeMounts:
    # Directories instead of single files (subPath), so that changes reach the container.
    - {name: keyward-config, mountPath: /etc/keyward, readOnly: true}
    - {name: keyward-scalekit, mountPath: /run/secrets/scalekit, readOnly: true}
    {{- with $values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* The volumes of the container, as items of a list. */}}
{{- define "keyward-sidecar.volumes" -}}
{{- $values := .values -}}
- name: keyward-config
  configMap: {name: {{ default .name $values.existingConfigMap | quote }}}
- name: keyward-scalekit
  secret:
    secretName: {{ required "existingSecret is required: a Secret with Scalekit's URL, client id and client secret" $values.existingSecret | quote }}
    items:
      - {key: {{ $values.secretKeys.environmentUrl | quote }}, path: environment_url}
      - {key: {{ $values.secretKeys.clientId | quote }}, path: client_id}
      - {key: {{ $values.secretKeys.clientSecret | quote }}, path: client_secret}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The route file, as the data of a ConfigMap; nothing with existingConfigMap. */}}
{{- define "keyward-sidecar.configData" -}}
{{- if not .values.existingConfigMap -}}
{{- $config := required "config is required: the text of keyward.toml (or name an existingConfigMap)" .values.config -}}
{{- if not (regexMatch `(?m)^\s*listen\s*=\s*["'](0\.0\.0\.0|\[::\]):4481["']` $config) -}}
{{- fail "config: [admin] must have listen = \"0.0.0.0:4481\" (or \"[::]:4481\"), because the kubelet's probes do not come from loopback" -}}
{{- end -}}
keyward.toml: |
  {{- $config | trim | nindent 2 }}
{{- end }}
{{- end }}

{{/* The annotation that replaces pods when the route file changes. */}}
{{- define "keyward-sidecar.annotations" -}}
{{- if and .values.restartOnConfigChange (not .values.existingConfigMap) -}}
checksum/keyward-config: {{ include "keyward-sidecar.configData" . | sha256sum }}
{{- end }}
{{- end }}
