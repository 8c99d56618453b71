// index.js calls look with all places of the site: [address, title, text]. A place is found if it has every word; a title counts more than a text.
const FOUND = 60; // places shown
const SHOWN = 160; // letters of a text around the first word

function look(places) {
    const [query, count, list] = ["query", "count", "found"].map((name) => document.getElementById(name));
    const known = places.map(([href, title, text]) => ({ href, title, text, names: title.toLowerCase(), all: `${title} ${text}`.toLowerCase() }));
    const rank = (place, words) => words.reduce((sum, word) => sum + (place.names.includes(word) ? 10 : 0) + Math.min(place.all.split(word).length - 1, 5), 0);
    const entry = ({ href, title, text }, words) => {
        const item = document.createElement("li"), link = document.createElement("a"), around = document.createElement("p");
        const begin = Math.max(0, Math.min(...words.map((word) => text.toLowerCase().indexOf(word)).filter((at) => at >= 0), text.length) - SHOWN / 2);
        Object.assign(link, { href, textContent: title });
        around.className = "quiet";
        around.textContent = `${begin ? "… " : ""}${text.slice(begin, begin + SHOWN)}${begin + SHOWN < text.length ? " …" : ""}`;
        item.append(link, around);
        return item;
    };
    const answer = () => {
        const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
        const found = words.length ? known.filter((place) => words.every((word) => place.all.includes(word))) : [];
        const ranks = new Map(found.map((place) => [place, rank(place, words)]));
        found.sort((a, b) => ranks.get(b) - ranks.get(a));
        count.textContent = words.length ? `${found.length} places${found.length > FOUND ? `, the first ${FOUND}` : ""}` : "";
        list.replaceChildren(...found.slice(0, FOUND).map((place) => entry(place, words)));
    };
    query.value = new URLSearchParams(location.search).get("q") ?? "";
    query.addEventListener("input", answer);
    answer();
}
