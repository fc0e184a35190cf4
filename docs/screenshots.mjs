// Takes the pictures of the workflows: node docs/screenshots.mjs URL [NAME_OF_ONE_TO_RUN_FIRST ...]
// Needs playwright-core and a Chromium (CHROMIUM, else the system's); the ComfyUI at URL must have the pack.
import { readdirSync, readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const [url, ...toRun] = process.argv.slice(2);
const folder = new URL("../workflows/", import.meta.url).pathname;
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu"],
});
const page = await browser.newPage({ viewport: { width: 1500, height: 900 } });
page.on("pageerror", (error) => console.error("page:", error.message));
for (const [key, value] of Object.entries({
  "Comfy.TutorialCompleted": true,
  "Comfy.Minimap.Visible": false,
  "Comfy.Graph.CanvasInfo": false,
  "LiteGraph.Canvas.MinFontSizeForLOD": 0,
})) {
  await fetch(`${url}/api/settings/${key}`, { method: "POST", body: JSON.stringify(value) });
}
await page.goto(url);
await page.waitForFunction(() => window.app?.extensionManager && window.app.graph, null, { timeout: 60_000 });
await page.waitForTimeout(2000);
for (const file of readdirSync(folder).filter((name) => name.endsWith(".json"))) {
  const name = file.replace(".json", "");
  const graph = JSON.parse(readFileSync(folder + file, "utf8"));
  await page.evaluate((graph) => window.app.loadGraphData(graph), graph);
  await page.waitForTimeout(800);
  const missing = await page.evaluate(() => window.app.graph._nodes.filter((n) => !n.constructor?.nodeData && n.type !== "MarkdownNote").map((n) => n.type));
  if (missing.length) console.error(name, "missing nodes:", missing);
  if (toRun.includes(name)) {
    const done = page.evaluate(
      () => new Promise((resolve) => window.app.api.addEventListener("execution_success", resolve, { once: true })),
    );
    await page.evaluate(() => window.app.queuePrompt(0));
    await done;
    await page.waitForTimeout(1500);
  }
  await page.evaluate(() => {
    const boxes = window.app.graph._nodes.map((node) => [node.pos[0], node.pos[1] - 40, node.pos[0] + node.size[0], node.pos[1] + node.size[1]]);
    const [left, top] = [Math.min(...boxes.map((b) => b[0])), Math.min(...boxes.map((b) => b[1]))];
    const [right, bottom] = [Math.max(...boxes.map((b) => b[2])), Math.max(...boxes.map((b) => b[3]))];
    const scale = Math.min(1380 / (right - left), 760 / (bottom - top), 1);
    const ds = window.app.canvas.ds;
    ds.scale = scale;
    ds.offset[0] = (90 + (1380 - (right - left) * scale) / 2) / scale - left;
    ds.offset[1] = (90 + (760 - (bottom - top) * scale) / 2) / scale - top;
    window.app.canvas.setDirty(true, true);
  });
  await page.waitForTimeout(800);
  await page.screenshot({ path: `${folder}${name}.jpg`, type: "jpeg", quality: 82 });
  console.log(`${name}.jpg`);
}
await browser.close();
