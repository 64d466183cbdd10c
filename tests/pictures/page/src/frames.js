// From Prometheus' answers to the data frames that Grafana's components take.
import {
  FieldType,
  Registry,
  applyFieldOverrides,
  cacheFieldDisplayNames,
  identityOverrideProcessor,
  standardTransformers,
  standardTransformersRegistry,
  thresholdsOverrideProcessor,
  transformDataFrame,
  valueMappingsOverrideProcessor,
} from "@grafana/data";
import { lastValueFrom } from "rxjs";

const processors = {
  thresholds: thresholdsOverrideProcessor,
  mappings: valueMappingsOverrideProcessor,
  custom: (value) => ({ ...value }), // an override changes one field only
};
const PROPERTIES = ["unit", "min", "max", "decimals", "displayName", "color", "thresholds", "mappings", "noValue", "custom"];

const registry = new Registry(() =>
  [...PROPERTIES.map((id) => ({ id, path: id })), { id: "custom.width", path: "width", isCustom: true }].map((item) => ({
    ...item,
    name: item.id,
    override: () => null,
    editor: () => null,
    process: processors[item.id] ?? identityOverrideProcessor,
    shouldApply: () => true,
  })),
);

standardTransformersRegistry.setInit(() =>
  [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer].map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    transformation: () => Promise.resolve(transformation),
    editor: () => null,
  })),
);

/** A series' name by its target's legend, as the Prometheus data source makes it. */
function named(labels, legend) {
  if (legend !== "__auto" && legend !== "") {
    return legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? "");
  }
  const { __name__: metric = "", ...rest } = labels;
  const listed = Object.entries(rest).map(([name, value]) => `${name}="${value}"`);
  return listed.length > 0 || metric ? `${metric}{${listed.join(", ")}}` : undefined;
}

const samples = (series) => series.values ?? [series.value];

function seriesFrame(series, target, step) {
  const name = named(series.metric, target.legendFormat);
  return {
    refId: target.refId,
    name,
    length: samples(series).length,
    fields: [
      { name: "Time", type: FieldType.time, config: { interval: step }, values: samples(series).map((s) => s[0] * 1000) },
      {
        name: "Value",
        type: FieldType.number,
        config: name === undefined ? {} : { displayNameFromDS: name },
        labels: series.metric,
        // What is not a number is a gap in a graph, as in Grafana's own panel.
        values: samples(series).map((s) => (Number.isFinite(Number(s[1])) ? Number(s[1]) : null)),
      },
    ],
  };
}

function tableFrame(found, target, several) {
  const labels = [...new Set(found.flatMap((series) => Object.keys(series.metric)))].sort();
  const field = (name, type, pick) => ({ name, type, config: {}, values: found.map(pick) });
  return {
    refId: target.refId,
    length: found.length,
    fields: [
      field("Time", FieldType.time, (series) => series.value[0] * 1000),
      ...labels.map((label) => field(label, FieldType.string, (series) => series.metric[label] ?? "")),
      field(several ? `Value #${target.refId}` : "Value", FieldType.number, (series) => Number(series.value[1])),
    ],
  };
}

/** A panel's frames: answered, transformed, with its units, thresholds and colours. */
export async function framesOf(panel, results, theme, stepMs) {
  const several = panel.targets.length > 1;
  let frames = panel.targets.flatMap((target) => {
    const found = results[`${panel.id}/${target.refId}`];
    if (target.format === "table") {
      return found.length > 0 ? [tableFrame(found, target, several)] : [];
    }
    return found.map((series) => seriesFrame(series, target, stepMs));
  });
  if (panel.transformations?.length && frames.length > 0) {
    frames = await lastValueFrom(transformDataFrame(panel.transformations, frames));
  }
  const made = applyFieldOverrides({
    data: frames,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registry,
    replaceVariables: (text) => text,
    theme,
    timeZone: "utc",
  });
  cacheFieldDisplayNames(made);
  return made;
}
