{{/* Full name of the release's objects; the longest name made from it is NAME-report-ca. */}}
{{- define "operator.name" -}}
{{- $base := default .Chart.Name .Values.nameOverride -}}
{{- if contains $base .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $base | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "operator.labels" -}}
{{ include "operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "operator.serviceAccount" -}}
{{- default (ternary (include "operator.name" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "operator.image" -}}
{{- printf "%s:%s" .image.repository (default .chart.AppVersion .image.tag) -}}
{{- end -}}

{{/* What the operator does in a namespace with runs in it. */}}
{{- define "operator.rules" -}}
- apiGroups: [finetune.llava.dev]
  resources: [llavafinetunes]
  # Deleted, by UID, are runs that ended longer ago than their spec.ttlSecondsAfterFinished, and no volume with them.
  verbs: [get, list, watch, delete]
- apiGroups: [finetune.llava.dev]
  resources: [llavafinetunes/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  # Deleted are its own alone: by UID, once an attempt is to stop (suspend, a lost node, a deadline), or is so long over
  # that the run's status tells of it no more.
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [configmaps]
  # Deleted are its own alone: by UID, those of attempts that the run's status tells of no more.
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  # Patched are owner references alone: a claim that is retained loses that of its run (spec.storage.retain).
  verbs: [get, create, patch]
{{- if .Values.isolateTraining }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create]
{{- end }}
- apiGroups: [events.k8s.io]
  resources: [events]
  # Listed are those about one Job, pod or claim that has waited: what only Events tell (quota, mounts, volumes).
  verbs: [get, list, create]
{{- end -}}

{{/* CEL: a text of the run, fit for a message. */}}
{{- define "policy.shown" -}}
({{ . }}.matches('^[!-~]+$') ? {{ . }} : dyn('a value that is not shown'))
{{- end -}}

{{/* CEL: the same of an address, in which a password may stand before an @. */}}
{{- define "policy.shownAddress" -}}
({{ . }}.matches('^[!-?A-~]+$') ? {{ . }} : dyn('a value that is not shown'))
{{- end -}}

{{/* CEL: patterns of names in which * stands for any part. */}}
{{- define "policy.patterns" -}}
{{- $made := list -}}
{{- range . }}{{ $made = append $made (printf "^%s$" (. | replace "." "[.]" | replace "*" "[a-z0-9.-]*")) }}{{ end -}}
{{- $made | toJson -}}
{{- end -}}

{{/* CEL: what an address of one of these hosts begins with. */}}
{{- define "policy.origins" -}}
{{- $made := list -}}
{{- range . }}{{ $made = append $made (printf "https://%s" (trimSuffix ":443" .)) }}{{ end -}}
{{- $made | toJson -}}
{{- end -}}

{{/* CEL: the same of notifications, which may go by plain HTTP (where policy.insecureNotifications says so). */}}
{{- define "policy.receivers" -}}
{{- $made := list -}}
{{- range . }}{{ $made = concat $made (list (printf "https://%s" (trimSuffix ":443" .)) (printf "http://%s" (trimSuffix ":80" .))) }}{{ end -}}
{{- $made | toJson -}}
{{- end -}}

{{/* What is said of a name that is not allowed. */}}
{{- define "policy.nameRule" -}}
but this installation {{ if .allowed }}allows only {{ .kind }} named {{ join ", " .allowed }}{{ else }}allows no {{ .kind }}{{ end }} ({{ .setting }}): name an allowed one, or none
{{- end -}}
