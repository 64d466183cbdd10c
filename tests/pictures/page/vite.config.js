import { copyFileSync, cpSync, mkdirSync } from "node:fs";

// Grafana's components fetch their icons and fonts by path.
cpSync("node_modules/@grafana/ui/dist/public/img", "public/public/build/img", { recursive: true });
mkdirSync("public/public/fonts/inter", { recursive: true });
for (const [name, weight] of Object.entries({ Regular: 400, Medium: 500 })) {
  const file = `node_modules/@fontsource/inter/files/inter-latin-${weight}-normal.woff2`;
  copyFileSync(file, `public/public/fonts/inter/Inter-${name}.woff2`);
}

export default {
  esbuild: { jsx: "automatic" },
  build: { chunkSizeWarningLimit: 20000, minify: false, rollupOptions: { shimMissingExports: true, onwarn: () => {} } },
  logLevel: "warn",
};
