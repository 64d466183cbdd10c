// One generated dashboard with captured data, laid out and drawn as Grafana draws it, by Grafana's own components.
import "@fontsource/inter/400.css";
import "@fontsource/inter/500.css";
import { createTheme, dateTime, getDisplayValueAlignmentFactors, getFieldDisplayValues, ThemeContext } from "@grafana/data";
import { BarGauge, BigValue, GlobalStyles, Icon, PanelChrome, PanelContextProvider, TimeSeries, VizRepeater } from "@grafana/ui";
import { TableNG } from "@grafana/ui/unstable";
import { createRoot } from "react-dom/client";
import { Heatmap, StateTimeline } from "./drawn.jsx";
import { framesOf } from "./frames.js";

const [CELL, GAP, COLUMNS, SIDE] = [30, 8, 24, 16];
const UNPADDED = ["stat", "table"];
const WIDTH = window.innerWidth - 2 * SIDE;
const theme = createTheme({ colors: { mode: "dark" } });

/** Where annotations begin: at the time that is their value, or at the first of samples in a row. */
function marks({ dashboard, annotations, steps }) {
  return dashboard.annotations.list.flatMap((note) =>
    (annotations[note.name] ?? []).flatMap((series) => {
      const times = series.values.map(([time, value]) => (note.useValueForTime ? Number(value) : time * 1000));
      const apart = note.useValueForTime ? 0 : steps.annotation;
      const firsts = times.filter((time, i) => i === 0 || time - times[i - 1] > apart);
      return firsts.map((time) => ({ time, color: note.iconColor }));
    }),
  );
}

function draw(notes) {
  return (config) => {
    config.addHook("draw", (u) => {
      u.ctx.save();
      for (const { time, color } of notes) {
        const x = Math.round(u.valToPos(time, "x", true));
        if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) {
          continue;
        }
        const bottom = u.bbox.top + u.bbox.height;
        u.ctx.strokeStyle = u.ctx.fillStyle = color;
        u.ctx.lineWidth = 1;
        u.ctx.setLineDash([4, 4]);
        u.ctx.beginPath();
        u.ctx.moveTo(x, u.bbox.top);
        u.ctx.lineTo(x, bottom);
        u.ctx.stroke();
        u.ctx.beginPath();
        u.ctx.moveTo(x, bottom);
        u.ctx.lineTo(x - 4, bottom + 6);
        u.ctx.lineTo(x + 4, bottom + 6);
        u.ctx.fill();
      }
      u.ctx.restore();
    });
    return null;
  };
}

function values(panel, frames, sparkline) {
  return getFieldDisplayValues({
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: (text) => text,
    data: frames,
    theme,
    timeZone: "utc",
    sparkline,
  });
}

function Repeated({ panel, frames, width, height, sparkline, orientation, children }) {
  return (
    <VizRepeater
      source={frames}
      getValues={() => values(panel, frames, sparkline)}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={children}
      renderCounter={0}
      width={width}
      height={height}
      orientation={orientation}
      minVizHeight={panel.options.minVizHeight}
      minVizWidth={panel.options.minVizWidth}
      autoGrid
      itemSpacing={orientation === "horizontal" ? 10 : 3}
    />
  );
}

const KINDS = {
  timeseries: ({ panel, frames, range, notes, width, height }) => (
    <TimeSeries frames={frames} timeRange={range} timeZone="utc" width={width} height={height} legend={panel.options.legend}>
      {draw(notes)}
    </TimeSeries>
  ),
  stat: (props) => (
    <Repeated {...props} sparkline={props.panel.options.graphMode !== "none"} orientation="auto">
      {({ value, width, height, count }) => (
        <BigValue
          value={value.display}
          count={count}
          sparkline={value.sparkline}
          colorMode={props.panel.options.colorMode}
          graphMode={props.panel.options.graphMode}
          justifyMode={props.panel.options.justifyMode}
          textMode={props.panel.options.textMode}
          width={width}
          height={height}
          theme={theme}
        />
      )}
    </Repeated>
  ),
  bargauge: (props) => (
    <Repeated {...props} sparkline={false} orientation={props.panel.options.orientation}>
      {({ value, width, height, alignmentFactors, count }) => (
        <BarGauge
          value={count === 1 ? { ...value.display, title: undefined } : value.display}
          field={value.field}
          display={value.view?.getFieldDisplayProcessor(value.colIndex)}
          width={width}
          height={height}
          orientation={props.panel.options.orientation}
          displayMode={props.panel.options.displayMode}
          valueDisplayMode={props.panel.options.valueMode}
          showUnfilled={props.panel.options.showUnfilled}
          namePlacement="auto"
          itemSpacing={10}
          lcdCellWidth={12}
          alignmentFactors={alignmentFactors}
          theme={theme}
        />
      )}
    </Repeated>
  ),
  table: ({ panel, frames, width, height }) => (
    <TableNG
      data={frames[0]}
      width={width}
      height={height}
      noHeader={!panel.options.showHeader}
      cellHeight={panel.options.cellHeight}
      fieldConfig={panel.fieldConfig}
      structureRev={1}
      enableVirtualization={false}
    />
  ),
  heatmap: Heatmap,
  "state-timeline": StateTimeline,
};

function Panel({ panel, frames, ...rest }) {
  const { x, y, w, h } = panel.gridPos;
  const column = (WIDTH - (COLUMNS - 1) * GAP) / COLUMNS;
  const box = { position: "absolute", left: x * (column + GAP), top: y * (CELL + GAP) };
  const [width, height] = [w * column + (w - 1) * GAP, h * CELL + (h - 1) * GAP];
  if (panel.type === "row") {
    return (
      <div style={{ ...box, display: "flex", alignItems: "center", gap: 6, height, fontWeight: 500 }}>
        <Icon name="angle-down" />
        {panel.title}
      </div>
    );
  }
  const Kind = KINDS[panel.type];
  const empty = frames.every((frame) => frame.length === 0);
  const counted = panel.type === "stat" || panel.type === "bargauge";
  return (
    <div style={box}>
      <PanelChrome title={panel.title} description={panel.description} width={width} height={height} padding={UNPADDED.includes(panel.type) ? "none" : "md"}>
        {(innerWidth, innerHeight) =>
          empty && !counted ? (
            <div style={{ display: "grid", placeItems: "center", width: innerWidth, height: innerHeight, fontSize: 18, color: theme.colors.text.secondary }}>
              {panel.fieldConfig.defaults.noValue ?? "No data"}
            </div>
          ) : (
            <Kind panel={panel} frames={frames} width={innerWidth} height={innerHeight} {...rest} />
          )
        }
      </PanelChrome>
    </div>
  );
}

/** Title, variables and time range; plainer than Grafana's, whose page around a dashboard is not published. */
function Head({ dashboard, range }) {
  const pill = { border: `1px solid ${theme.colors.border.medium}`, borderRadius: 2, padding: "3px 8px", background: theme.colors.background.primary };
  return (
    <div style={{ display: "flex", gap: 8, alignItems: "center", height: 32, fontSize: 12 }}>
      <span style={{ fontSize: 18, fontWeight: 500, marginRight: 12 }}>{dashboard.title}</span>
      {dashboard.templating.list.map((variable) => (
        <span key={variable.name} style={pill}>
          <span style={{ color: theme.colors.text.secondary }}>{variable.label}</span>{" "}
          {variable.type === "datasource" ? "Prometheus" : "All"}
        </span>
      ))}
      <span style={{ ...pill, marginLeft: "auto" }}>
        {range.from.utc().format("HH:mm:ss")} to {range.to.utc().format("HH:mm:ss")} UTC
      </span>
    </div>
  );
}

async function main() {
  const name = new URLSearchParams(window.location.search).get("board");
  const captured = await (await fetch(`data/${name}.json`)).json();
  const { dashboard, results, from, to, steps } = captured;
  const range = { from: dateTime(from), to: dateTime(to), raw: { from: dateTime(from), to: dateTime(to) } };
  const notes = marks(captured);
  await Promise.all(["400 12px Inter", "500 14px Inter"].map((font) => document.fonts.load(font)));
  const panels = await Promise.all(
    dashboard.panels.map(async (panel) => {
      const stepMs = panel.type === "heatmap" ? steps.heatmap : steps.other;
      return { panel, stepMs, frames: panel.targets ? await framesOf(panel, results, theme, stepMs) : [] };
    }),
  );
  createRoot(document.getElementById("root")).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PanelContextProvider value={{ eventsScope: "pictures", eventBus: { getStream: () => ({ pipe: () => ({ subscribe: () => undefined }), subscribe: () => undefined }) } }}>
        <div style={{ padding: SIDE, paddingTop: 10 }}>
          <Head dashboard={dashboard} range={range} />
          <div style={{ position: "relative", marginTop: 10 }}>
            {panels.map(({ panel, ...rest }) => (
              <Panel key={panel.id} panel={panel} range={range} notes={notes} theme={theme} {...rest} />
            ))}
          </div>
        </div>
      </PanelContextProvider>
    </ThemeContext.Provider>,
  );
}

main();
