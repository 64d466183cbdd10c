// Heatmaps and state timelines: these two are plugins inside Grafana, not published components, so they are drawn here,
// on Grafana's own plot builder, axes and colours, by the options of the dashboard.
import { formattedValueToString, getDisplayProcessor, getFieldDisplayName, getValueFormat, FieldType } from "@grafana/data";
import { AxisPlacement, ScaleDirection, ScaleOrientation } from "@grafana/schema";
import { UPlotChart, UPlotConfigBuilder } from "@grafana/ui";
import { interpolateViridis } from "d3-scale-chromatic";

function plot({ range, theme, rows, label, draw, size, between }) {
  const builder = new UPlotConfigBuilder("utc");
  builder.addScale({
    scaleKey: "x",
    isTime: true,
    orientation: ScaleOrientation.Horizontal,
    direction: ScaleDirection.Right,
    range: () => [range.from.valueOf(), range.to.valueOf()],
  });
  builder.addAxis({ scaleKey: "x", isTime: true, placement: AxisPlacement.Bottom, timeZone: "utc", theme, grid: { show: false } });
  builder.addScale({
    scaleKey: "y",
    orientation: ScaleOrientation.Vertical,
    direction: ScaleDirection.Up,
    range: () => [0, Math.max(rows, 1)],
  });
  const places = Array.from({ length: rows }, (_, row) => row + (between ? 1 : 0.5));
  builder.addAxis({
    scaleKey: "y",
    placement: AxisPlacement.Left,
    theme,
    size,
    grid: { show: false },
    splits: () => places,
    values: () => places.map((_, row) => label(row)),
  });
  builder.addSeries({ scaleKey: "y", theme, show: true, pathBuilder: () => null, pointsBuilder: () => null, lineColor: "transparent" });
  builder.addHook("draw", (u) => {
    u.ctx.save();
    u.ctx.beginPath();
    u.ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    u.ctx.clip();
    draw(u, (from, to, low, high) => {
      const [left, right] = [u.valToPos(from, "x", true), u.valToPos(to, "x", true)];
      const [top, bottom] = [u.valToPos(high, "y", true), u.valToPos(low, "y", true)];
      return [left, top, right - left, bottom - top];
    });
    u.ctx.restore();
  });
  return builder;
}

const bound = (frame) => {
  const le = frame.fields[1].labels.le;
  return le === "+Inf" ? Infinity : Number(le);
};

/** Cumulative buckets become counts of each bucket, as the Prometheus data source does. */
export function Heatmap({ panel, frames, range, theme, stepMs, width, height }) {
  const sorted = [...frames].sort((a, b) => bound(a) - bound(b));
  const at = sorted.map((frame) => new Map(frame.fields[0].values.map((time, i) => [time, frame.fields[1].values[i]])));
  const cells = sorted.flatMap((frame, row) =>
    frame.fields[0].values.map((time, i) => ({
      time,
      row,
      count: frame.fields[1].values[i] - (row > 0 ? (at[row - 1].get(time) ?? 0) : 0),
    })),
  );
  const shown = cells.filter((cell) => cell.count > panel.options.filterValues.le);
  const most = Math.max(...shown.map((cell) => cell.count), 1e-9);
  const { steps, exponent } = panel.options.color;
  const colour = (count) => interpolateViridis(Math.round((count / most) ** exponent * (steps - 1)) / (steps - 1));
  const display = getDisplayProcessor({ field: { type: FieldType.number, config: { unit: panel.options.yAxis.unit } }, theme });
  const used = new Set(shown.map((cell) => cell.row));
  const [low, high] = [Math.min(...used), Math.max(...used)];
  const legend = 34;
  const every = Math.ceil((high - low + 1) / Math.max((height - legend - 40) / 16, 1));
  const name = (row) => {
    const le = bound(sorted[row + low]);
    return row % every === 0 ? (le === Infinity ? "+Inf" : formattedValueToString(display(le))) : "";
  };
  const gap = panel.options.cellGap;
  const draw = (u, box) => {
    for (const { time, row, count } of shown) {
      const [left, top, w, h] = box(time - stepMs, time, row - low, row - low + 1);
      u.ctx.fillStyle = colour(count);
      u.ctx.fillRect(left + gap / 2, top + gap / 2, w - gap, h - gap);
    }
  };
  const builder = plot({ range, theme, rows: high - low + 1, label: name, draw, between: true });
  const colours = Array.from({ length: 12 }, (_, i) => interpolateViridis(i / 11)).join(",");
  const small = { fontSize: 11, color: theme.colors.text.secondary };
  return (
    <div>
      <UPlotChart config={builder} data={[[range.from.valueOf(), range.to.valueOf()], [0, 0]]} width={width} height={height - legend} />
      <div style={{ padding: "6px 8px", width: 220 }}>
        <div style={{ height: 8, background: `linear-gradient(to right, ${colours})` }} />
        <div style={{ ...small, display: "flex", justifyContent: "space-between" }}>
          <span>0</span>
          <span>{formattedValueToString(getValueFormat("short")(most, 0))}</span>
        </div>
      </div>
    </div>
  );
}

export function StateTimeline({ panel, frames, range, theme, stepMs, width, height }) {
  const names = frames.map((frame) => getFieldDisplayName(frame.fields[1], frame, frames));
  const spans = frames.flatMap((frame, index) => {
    const [times, values] = frame.fields.map((field) => field.values);
    const found = [];
    times.forEach((time, i) => {
      const last = found.at(-1);
      if (last && last.value === values[i] && time - last.to <= stepMs) {
        last.to = time + stepMs;
      } else {
        found.push({ row: frames.length - 1 - index, from: time, to: time + stepMs, value: values[i] });
      }
    });
    return found.map((span) => ({ ...span, shown: frame.fields[1].display(span.value) }));
  });
  const space = (1 - panel.options.rowHeight) / 2;
  const draw = (u, box) => {
    u.ctx.font = `${12 * devicePixelRatio}px ${theme.typography.fontFamily}`;
    u.ctx.textBaseline = "middle";
    u.ctx.textAlign = "left";
    for (const { row, from, to, shown } of spans) {
      const [left, top, w, h] = box(from, to, row + space, row + 1 - space);
      u.ctx.globalAlpha = panel.fieldConfig.defaults.custom.fillOpacity / 100;
      u.ctx.fillStyle = shown.color;
      u.ctx.fillRect(left, top, w, h);
      u.ctx.globalAlpha = 1;
      const text = formattedValueToString(shown);
      if (u.ctx.measureText(text).width + 8 < w) {
        u.ctx.fillStyle = theme.colors.getContrastText(shown.color, theme.colors.contrastThreshold);
        u.ctx.fillText(text, Math.max(left, u.bbox.left) + 6, top + h / 2);
      }
    }
  };
  const size = Math.min(Math.max(...names.map((name) => name.length)) * 7 + 16, width / 3);
  const builder = plot({ range, theme, rows: frames.length, label: (row) => names[names.length - 1 - row], draw, size });
  return <UPlotChart config={builder} data={[[range.from.valueOf(), range.to.valueOf()], [0, 0]]} width={width} height={height} />;
}
