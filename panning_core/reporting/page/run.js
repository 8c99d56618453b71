// One run: its curves, its line and how to repeat it. NAME.runs.js calls show with all runs of the study, and the address has the key of one.
const AXES = ["step", "steps", "round", "rounds", "epoch", "episodes"]; // what is counted along a curve, and no curve itself
const isCurve = (value) => Array.isArray(value) && value.length > 2 && value.every((each) => each === null || typeof each === "number") && value.some((each) => each !== null);

function curvesOf(metrics) {
    const found = [];
    for (const [name, value] of Object.entries(metrics)) {
        const parts = isCurve(value) ? [[name, value]] : value && typeof value === "object" && !Array.isArray(value) ? Object.entries(value).filter((pair) => isCurve(pair[1])) : [];
        found.push(...parts.filter(([part]) => !AXES.includes(part)));
    }
    return found;
}

const NUMBER = (value) => (Number.isInteger(value) ? String(value) : value.toPrecision(4));

// A small picture: a line, its ends and its extremes in words.
function curve(name, values) {
    const known = values.filter((value) => value !== null);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const [width, height] = [230, 80];
    const x = (place) => (width * place) / (values.length - 1);
    const y = (value) => height - (height * (value - low)) / (high - low || 1);
    const path = values.map((value, place) => (value === null ? "" : `${place && values[place - 1] !== null ? "L" : "M"}${x(place).toFixed(1)} ${y(value).toFixed(1)}`)).join("");
    const figure = document.createElement("figure");
    figure.innerHTML = `<svg viewBox="-3 -3 ${width + 6} ${height + 6}" role="img"><path d="${path}"/></svg><figcaption></figcaption>`;
    const last = values.findLast((value) => value !== null);
    figure.firstChild.setAttribute("aria-label", name);
    figure.lastChild.textContent = `${name.replaceAll("_", " ")}: from ${NUMBER(low)} to ${NUMBER(high)}, at the end ${NUMBER(last)} (${values.length} points)`;
    return figure;
}

function show(ledger) {
    const at = (name) => document.getElementById(name);
    const draw = () => {
        const key = location.hash.slice(1).slice(0, 8), run = Object.hasOwn(ledger, key) ? ledger[key] : null;
        at("run").hidden = !run;
        if (!run) {
            if (key) at("which").firstChild.data = `No run of this study has the key ${key}: `;
            return;
        }
        const { line, repeat } = run;
        at("which").textContent = Object.entries(line.run).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
        at("curves").replaceChildren(...curvesOf(line.metrics).map((pair) => curve(...pair)));
        at("results").replaceChildren(...Object.entries(line.metrics).filter((pair) => pair[1] === null || typeof pair[1] !== "object").flatMap(([name, value]) => ["dt", "dd"].map((tag, i) => Object.assign(document.createElement(tag), { textContent: i ? String(value) : name.replaceAll("_", " ") }))));
        at("repeat").textContent = repeat;
        at("line").textContent = JSON.stringify(line, null, 1);
    };
    draw();
    addEventListener("hashchange", draw);
}
