// Shows in a node what it said when it ran: a verdict, a table, a path. Text from files is never taken for markup.
import { app } from "../../scripts/app.js";

const WIDGET = "amdet_text";

function textWidget(node) {
  const found = node.widgets?.find((widget) => widget.name === WIDGET);
  if (found) return found;
  const element = document.createElement("pre");
  element.style.cssText =
    "margin:0;padding:8px;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;font:11px/1.45 monospace;" +
    "color:var(--input-text);background:var(--comfy-input-bg);border-radius:4px;user-select:text";
  const height = node.comfyClass === "AMDET_ShowReport" ? 260 : 100;
  const options = { serialize: false, hideInPanel: true, getMinHeight: () => height };
  const widget = node.addDOMWidget(WIDGET, WIDGET, element, options);
  widget.serialize = false; // keeps it out of saved workflows, too
  return widget;
}

app.registerExtension({
  name: "amdet.text",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("AMDET_")) return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.text) textWidget(this).element.textContent = output.text.join("\n");
    };
  },
});
